"""Kernels of infinitely wide networks inside scikit-learn.

`NetworkKernel` is a `sklearn.gaussian_process.kernels.Kernel`, for GaussianProcessRegressor, KernelRidge, SVC, Nystroem and
KernelPCA; it combines with other kernels and is searched over like them. `NetworkClassifier` is ridge regression on
one-hot labels. Needs the extra `sklearn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn
from tensorprog.apps.checks import check_slopes
from tensorprog.apps.factor import Factor, regularised
from tensorprog.apps.grams import Grams, as_numpy, check_number, precision
from tensorprog.errors import InputError
from tensorprog.runtime.inputs import real_number

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.gaussian_process.kernels import Hyperparameter, Kernel
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise InputError("tensorprog.sklearn needs scikit-learn: pip install 'tensorprog[sklearn]'") from None

__all__ = ["NetworkClassifier", "NetworkKernel", "relu_network"]

BOUNDS = (1e-5, 1e5)  # scikit-learn's default for its own kernels
OWN = ("net", "example", "get")


class NetworkKernel(Kernel):
    """The kernel of an infinitely wide network as a scikit-learn kernel, a whole matrix at a time, in float64.

    net: what `tp.compile` takes, or a compiled or loaded kernel. example: an example input; rows of X, of which scikit-learn
    knows only how many numbers they hold, are reshaped to it. get: "nngp" or "ntk". hyperparameters: values of the
    network's `tp.hyper` numbers, which default to theirs; each may have bounds for the search, as name_bounds=(low, high),
    (1e-5, 1e5) without, or "fixed".

    As for scikit-learn's own kernels, `theta` holds logarithms of the hyperparameters that are not fixed, so these are positive.
    Clones share the compiled kernel. Raises InputError for unknown names and rows of another size.

    Example:
        >>> import jax, numpy as np, tensorprog as tp
        >>> from sklearn.gaussian_process import GaussianProcessRegressor
        >>> from tensorprog import nn
        >>> from tensorprog.sklearn import NetworkKernel
        >>> def net(x):
        ...     return nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("weight_var", 2.0), bias_var=0.1)), features=1)
        >>> kernel = NetworkKernel(net, np.zeros(2), weight_var=1.5, weight_var_bounds=(0.1, 10.0))
        >>> kernel
        NetworkKernel(nngp, weight_var=1.5)
        >>> model = GaussianProcessRegressor(kernel, alpha=1e-3).fit(np.eye(2), [1.0, -1.0])
        >>> model.predict(np.eye(2)).round(2)
        array([ 1., -1.])
    """

    def __init__(self, net: Any, example: Any, *, get: str = "nngp", **hyperparameters: Any):
        self.net, self.example, self.get = net, example, _get(get)
        self._shape = _shape_of(example)
        self.compiled = net if hasattr(net, "hypers") and hasattr(net, "diag") else tp.compile(net, example)
        self._values = dict(self.compiled.hypers)
        self._bounds: dict[str, Any] = dict.fromkeys(self._values, BOUNDS)
        self._update(hyperparameters)

    def _update(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            base = name.removesuffix("_bounds")
            if name in self._values:
                self._values[name] = _value(value, name)
            elif name != base and base in self._bounds:
                self._bounds[base] = _checked_bounds(value, name)
            else:
                known = ", ".join(sorted(self._values)) or "none"
                raise InputError(f"NetworkKernel: {name!r} is no hyperparameter of the network; it has: {known}")

    # ---- parameters, as scikit-learn sees them

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All arguments by name, for `set_params` and grid searches."""
        bounds = {f"{name}_bounds": value for name, value in self._bounds.items()}
        return {name: getattr(self, name) for name in OWN} | self._values | bounds

    def set_params(self, **params: Any) -> NetworkKernel:
        """Change hyperparameters, their bounds, or `get`; another network is another kernel."""
        for name in ("net", "example"):
            if name in params and params.pop(name) is not getattr(self, name):
                raise InputError(f"NetworkKernel: {name} cannot be changed; make a new NetworkKernel")
        if "get" in params:
            self.get = _get(params.pop("get"))
        self._update(params)
        return self

    def __sklearn_clone__(self) -> NetworkKernel:
        """A copy with hyperparameters of its own, and the same compiled kernel."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._values, other._bounds = dict(self._values), dict(self._bounds)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What other processes need: the compiled kernel goes with it. Arrays as NumPy has them: JAX may run in 32 bits there."""
        return {**self.__dict__, "example": as_numpy(self.example), "_values": as_numpy(self._values)}

    def __copy__(self) -> NetworkKernel:
        return self.__sklearn_clone__()

    def __deepcopy__(self, memo: Any) -> NetworkKernel:
        return self.__sklearn_clone__()

    @property
    def hyperparameters(self) -> list[Hyperparameter]:
        """One for each hyperparameter of the network, by name."""
        return [Hyperparameter(name, "numeric", self._bounds[name]) for name in sorted(self._values)]

    # ---- values

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """The kernel matrix (N1, N2), and with `eval_gradient` (for Y None) its derivatives in theta, (N, N, P)."""
        if eval_gradient and Y is not None:
            raise InputError("NetworkKernel: the gradient can be evaluated only for Y None")
        first, second = self._rows(X, "X"), None if Y is None else self._rows(Y, "Y")
        grams = self._grams()
        matrix = np.array(grams(self.get, first, second))  # writable, as scikit-learn wants
        if grams.axes:
            raise InputError(
                f"NetworkKernel: the network's output has axes of shape {grams.axes}, expected one number for each row\n"
                "  to mend: end it in nn.dense(nn.flatten(h), features=1), or a mean over positions before the readout"
            )
        return (matrix, self._gradient(first)) if eval_gradient else matrix

    def _gradient(self, rows: np.ndarray) -> np.ndarray:
        """dK / d log of each free hyperparameter, by forward differentiation of the compiled kernel."""
        free = [h.name for h in self.hyperparameters if not h.fixed]
        if not free:
            return np.empty((len(rows), len(rows), 0))
        with precision():
            at = jnp.log(jnp.asarray([float(self._values[name]) for name in free]))
            x, fixed = jnp.asarray(rows), {k: v for k, v in self._values.items() if k not in free}

            def matrix(theta: jax.Array) -> jax.Array:
                opened = dict(zip(free, jnp.exp(theta), strict=True))
                return self.compiled(x, get=self.get, **fixed, **opened)

            found = np.array(jax.jacfwd(matrix)(at))
        check_slopes(self.compiled, found, "NetworkKernel")
        return found

    def diag(self, X: Any) -> np.ndarray:
        """The kernel of every row with itself, (N,)."""
        rows = self._rows(X, "X")
        with precision():
            return np.array(getattr(self.compiled.diag(rows, **self._values), self.get))

    def is_stationary(self) -> bool:
        """Never: the kernel of a network depends on the lengths of its inputs."""
        return False

    @property
    def requires_vector_input(self) -> bool:
        """Rows of numbers, not lists of objects."""
        return True

    def _grams(self) -> Grams:
        return Grams(self.compiled, self._values)

    def _rows(self, X: Any, name: str) -> np.ndarray:
        size = math.prod(self._shape)
        try:
            rows = np.asarray(X)
            if rows.dtype.kind == "c":
                raise TypeError  # NumPy would drop the imaginary parts
            rows = rows.astype(np.float64)
        except (TypeError, ValueError):
            kind = f" of {X.dtype}" if hasattr(X, "dtype") else ""
            raise InputError(
                f"NetworkKernel: {name} is a {type(X).__name__}{kind}, expected (N, {size}) real numbers"
            ) from None
        if rows.ndim < 2 or math.prod(rows.shape[1:]) != size:
            raise InputError(
                f"NetworkKernel: {name} has shape {rows.shape}, expected (N, {size}): the example input has shape {self._shape}"
            )
        return rows.reshape(len(rows), *self._shape)

    def __repr__(self) -> str:
        values = "".join(f", {name}={float(value):.4g}" for name, value in sorted(self._values.items()))
        return f"NetworkKernel({self.get}{values})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetworkKernel):
            return False
        same = (self.compiled, self.get, self._values) == (other.compiled, other.get, other._values)
        return same and {k: _bounds(v) for k, v in self._bounds.items()} == {
            k: _bounds(v) for k, v in other._bounds.items()
        }

    __hash__ = None  # type: ignore[assignment]


def _value(value: Any, name: str) -> Any:
    number = real_number(value)
    if number is not None and math.isfinite(number):
        return value
    raise InputError(
        f'NetworkKernel: {name} is {value!r}, expected a finite number; what stays as it is is said by {name}_bounds="fixed"'
    )


def _get(value: Any) -> str:
    if value not in ("nngp", "ntk"):
        raise InputError(f"NetworkKernel: get is {value!r}, expected 'nngp' or 'ntk'")
    return str(value)


def _checked_bounds(value: Any, name: str) -> Any:
    """Bounds as scikit-learn takes them, unchanged: it compares arguments with what it was given."""
    try:
        low, high = ("", "") if isinstance(value, str) else (float(v) for v in np.ravel(value))
        if value == "fixed" if isinstance(value, str) else 0 < low <= high:  # type: ignore[operator]
            return value
    except (TypeError, ValueError):
        pass
    raise InputError(f'NetworkKernel: {name} is {value!r}, expected (low, high) with 0 < low <= high, or "fixed"')


def _bounds(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(np.ravel(value).tolist())


def _shape_of(example: Any) -> tuple[int, ...]:
    leaves = jax.tree.leaves(example)
    if len(leaves) != 1 or not jax.tree_util.treedef_is_leaf(jax.tree.structure(example)):
        raise InputError(
            f"NetworkKernel: example is a {type(example).__name__} with {len(leaves)} arrays, expected one array: "
            "scikit-learn has rows of numbers"
        )
    return tuple(np.shape(example))


def relu_network(x: jax.Array) -> jax.Array:
    """Two hidden layers of ReLU with biases, what `NetworkClassifier` uses when nothing else is given."""
    h = jax.nn.relu(nn.dense(x, weight_var=2.0, bias_var=0.1))
    return nn.dense(jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=0.1)), features=1)


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """Kernel ridge regression on one-hot labels with a network's kernel; the class is the largest of the outputs.

    With the NTK and alpha towards 0 this is the mean prediction of infinitely wide networks trained on the square loss to
    the end (Lee et al. 2019; labels as in Arora et al. 2019, one-hot minus their mean).

    net: as for `NetworkKernel`; None is `relu_network`. example: an example input; None means rows of X as they are. get: "ntk"
    or "nngp". alpha: added to the diagonal, as a multiple of its mean. hyperparameters: a dict of the kernel's, by name.

    After `fit`: classes_, n_features_in_, kernel_.

    Example:
        >>> import numpy as np
        >>> from tensorprog.sklearn import NetworkClassifier
        >>> x = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.2]])
        >>> NetworkClassifier(alpha=1e-3).fit(x, ["a", "a", "b", "b"]).predict([[0.0, 2.0]])
        array(['a'], dtype='<U1')
    """

    def __init__(
        self, net: Callable[..., Any] | None = None, example: Any = None, *, get: str = "ntk", alpha: float = 1e-6,
        hyperparameters: dict[str, float] | None = None,
    ):  # fmt: skip
        self.net, self.example, self.get, self.alpha, self.hyperparameters = net, example, get, alpha, hyperparameters

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """Solve for the weights of the rows of X (N, features) with labels y (N,), of any kind that scikit-learn takes."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        alpha = check_number(self.alpha, "alpha")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y has one class, {self.classes_.tolist()[0]!r}, expected at least two classes")
        example = np.zeros(X.shape[1]) if self.example is None else self.example
        net = relu_network if self.net is None else self.net
        known = getattr(self, "kernel_", None)
        if known is None or known.net is not net or np.shape(known.example) != np.shape(example):
            known = NetworkKernel(net, example, get=self.get)
        defaults = dict(known.compiled.hypers)  # an earlier fit may have had other values
        self.kernel_ = known.__sklearn_clone__().set_params(get=self.get, **(defaults | (self.hyperparameters or {})))
        self._X = np.array(X)  # as it is now, whatever is written into X later
        onehot = np.eye(len(self.classes_))[codes] - 1 / len(self.classes_)
        self._weights = Factor(regularised(self.kernel_(X), 0.0, alpha)).solve(onehot)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The outputs, (M, classes); for two classes their difference, (M,), positive for the second."""
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row."""
        outputs = self._outputs(X)
        return self.classes_[np.argmax(outputs, axis=1)]

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.kernel_(X, self._X) @ self._weights
