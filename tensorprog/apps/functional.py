"""Kernel gradient descent in function space, for any differentiable cost of the network's values.

Under gradient flow on a cost C of the values f(x_1), .., f(x_N), an infinitely wide network moves by its kernel gradient:

    d f(x) / dt = - sum_j NTK(x, x_j) dC / df(x_j),        dC / dt = - sum_ij dC/df(x_i) NTK(x_i, x_j) dC/df(x_j) <= 0

Source: Jacot, Gabriel and Hongler 2018, section 3. So f(x) = f_0(x) + sum_j NTK(x, x_j) a_j with da/dt = - gradient of C:
one equation for a, solved by diffrax, gives the path at all inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.grams import Grams, Targets, check_number, check_one, count, kept, precision
from tensorprog.apps.training import EarlyStop
from tensorprog.errors import InputError, explain

__all__ = ["FunctionalDescent", "Path", "cross_entropy", "square_loss"]

MAX_STEPS = 200_000


class Path(NamedTuple):
    """The training inputs along the descent, at T times.

    times (T,). values (T, N, *S) or (T, N, *S, F). cost (T,). slope (T,): dC/dt, never positive. weights
    (T, N |S|, F): the a_j.
    """

    times: np.ndarray
    values: np.ndarray
    cost: np.ndarray
    slope: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class _SquareLoss:
    y: np.ndarray

    def __call__(self, f: jax.Array) -> jax.Array:
        if f.shape != self.y.shape:
            raise InputError(f"y has shape {self.y.shape}, but f has {f.shape}: expected the same")
        return 0.5 * jnp.sum(jnp.square(f - jnp.asarray(self.y, f.dtype))) / f.shape[0]


def square_loss(y: Any) -> Callable[[jax.Array], jax.Array]:
    """The cost 1/(2N) sum_i |f(x_i) - y_i|^2, for f of the shape of y.

    Raises InputError for y that does not hold finite real numbers.
    """
    known = np.asarray(y)
    if known.dtype.kind not in "biuf" or known.ndim == 0 or not np.isfinite(known).all():
        raise InputError(f"y has shape {known.shape} and dtype {known.dtype}, expected (N, ..) finite real numbers")
    return _SquareLoss(known)


@dataclass(frozen=True, eq=False)
class _CrossEntropy:
    labels: np.ndarray

    def __call__(self, f: jax.Array) -> jax.Array:
        known = self.labels
        if f.ndim != 2 or f.shape[0] != len(known) or f.shape[1] <= known.max(initial=0):
            raise InputError(
                f"labels are for ({len(known)}, {known.max(initial=0) + 1}) values or more classes, but f has {f.shape}"
            )
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(f), jnp.asarray(known)[:, None], 1))


def cross_entropy(labels: Any) -> Callable[[jax.Array], jax.Array]:
    """The cost (1/N) sum_i of -log softmax(f(x_i))[label_i], for f of shape (N, classes) and integer labels (N,).

    Raises InputError for labels that are not whole numbers >= 0.
    """
    known = np.asarray(labels)
    if known.ndim != 1 or known.dtype.kind not in "iu" or (known < 0).any():
        raise InputError(f"labels has shape {known.shape} and dtype {known.dtype}, expected (N,) whole numbers >= 0")
    return _CrossEntropy(known)


class FunctionalDescent:
    """Gradient flow of an infinitely wide network on a cost of its values at the inputs x.

    kernel: from `tp.compile` or `tp.load`. x: (N, *example), or a pytree. cost: a JAX function of the values f, an array
    (N, *S) or (N, *S, F), to a number. f0: the values before training, shaped like f. get: "ntk"; "nngp" trains the last
    layer alone. hypers: the kernel's hyperparameters. Needs the extra `ode` (diffrax).

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(2))
        >>> cost = apps.cross_entropy(np.array([0, 1]))
        >>> descent = apps.FunctionalDescent(kernel, np.eye(2), cost, f0=np.zeros((2, 2)))
        >>> path = descent.run([0.0, 10.0])
        >>> bool(path.cost[1] < path.cost[0])
        True
    """

    def __init__(
        self, kernel: Callable[..., Any], x: Any, cost: Callable[[jax.Array], jax.Array], *, f0: Any, get: str = "ntk",
        **hypers: float,
    ):  # fmt: skip
        self._grams, self._get = Grams(kernel, hypers), check_one(get, "FunctionalDescent")
        self._gram, self._x = self._grams(get, x), kept(x)
        self._start = Targets(f0, count(x, "x"), self._grams.axes or (), name="f0")
        self._shape = self._start.shaped(self._start.flat).shape
        self._cost = cost
        _check_cost(cost, self._shape)

    def run(self, times: Any, *, tolerance: float = 1e-8, solver: Any = None) -> Path:
        """The path at these times (T,), each finite and >= 0.

        tolerance: relative and absolute, of the solver's steps. solver: a diffrax solver; None means Tsit5. Where
        eigenvalues differ by many orders and the cost is curved, an implicit one, as diffrax.Kvaerno5(), takes fewer steps.
        """
        try:
            asked = np.atleast_1d(np.asarray(times, np.float64))
        except (TypeError, ValueError):
            raise InputError(f"times is {times!r}, expected finite numbers >= 0, in a list") from None
        if asked.ndim != 1 or not asked.size or not np.isfinite(asked).all() or (asked < 0).any():
            raise InputError(f"times is {times!r}, expected finite numbers >= 0, in a list")
        check_number(tolerance, "tolerance", positive=True)
        order = np.argsort(asked, kind="stable")
        with precision():
            weights = np.empty((len(asked), *self._start.flat.shape))
            weights[order] = self._solve(asked[order], tolerance, solver)
            values = self._start.flat + self._gram @ weights
            shaped = values.reshape(len(asked), *self._shape)
            cost, slopes = jax.vmap(jax.value_and_grad(self._cost))(jnp.asarray(shaped))
        if not np.isfinite(np.asarray(cost)).all():
            raise InputError(
                explain(
                    f"FunctionalDescent: cost gives {np.asarray(cost)} along the path, expected finite numbers",
                    reason="a path can be followed by gradients alone, but nothing can be said of a cost that is no number",
                    mend="look where the cost is defined, and start from f0 inside",
                )
            )
        gradient = np.asarray(slopes).reshape(values.shape)
        slope = -np.einsum("tif,ij,tjf->t", gradient, self._gram, gradient, optimize=True)
        return Path(asked, shaped, np.asarray(cost), slope, weights)

    def predict(self, path: Path, x: Any, *, f0_test: Any) -> np.ndarray:
        """The values at test inputs x (M, *example) along the path: (T, M, *S) or (T, M, *S, F)."""
        start = self._start.like(f0_test, count(x, "x"), "f0_test")
        return self._start.shaped(start + self._grams(self._get, x, self._x) @ path.weights)

    def early_stopping(self, path: Path, x: Any, cost: Callable[[jax.Array], jax.Array], *, f0_test: Any) -> EarlyStop:
        """The time along the path of the least cost of the values at validation inputs x (M, *example).

        cost: a JAX function of these values to a number, as `cross_entropy` of their labels. f0_test: the values before training.
        """
        values = self.predict(path, x, f0_test=f0_test)
        _check_cost(cost, values.shape[1:], kinds=(jnp.floating, jnp.integer))  # a count of errors, say
        with precision():
            losses = np.asarray(jax.vmap(cost)(jnp.asarray(values)))
        if losses.shape != path.times.shape or not np.isfinite(losses).all():
            raise InputError(f"early_stopping: cost gives {losses}, expected one finite number at each time")
        best = int(np.argmin(losses))
        return EarlyStop(float(path.times[best]), float(losses[best]), losses)

    def _solve(self, times: np.ndarray, tolerance: float, solver: Any) -> np.ndarray:
        try:
            import diffrax
        except ImportError:
            raise InputError("FunctionalDescent.run needs diffrax: pip install 'tensorprog[ode]'") from None
        if solver is not None and not isinstance(solver, diffrax.AbstractSolver):
            raise InputError(f"solver is {solver!r}, expected a diffrax solver, as diffrax.Kvaerno5(), or None")
        gram, start = jnp.asarray(self._gram), jnp.asarray(self._start.flat)
        if times[-1] == 0:
            return np.zeros((len(times), *start.shape))

        def field(t: Any, weights: jax.Array, args: Any) -> jax.Array:
            values = (start + gram @ weights).reshape(self._shape)
            return -jax.grad(self._cost)(values).reshape(weights.shape)

        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver or diffrax.Tsit5(), 0.0, float(times[-1]), None, jnp.zeros_like(start),
            saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance * 1e-2),
            max_steps=MAX_STEPS, throw=False,
        )  # fmt: skip
        if found.result != diffrax.RESULTS.successful or not np.isfinite(np.asarray(found.ys)).all():
            raise InputError(
                explain(
                    f"FunctionalDescent: the equation could not be solved up to t = {times[-1]:g}",
                    reason=f"the solver gave up within {MAX_STEPS} steps, or met values that are not finite",
                    mend="ask for a shorter time, or give an implicit solver, solver=diffrax.Kvaerno5()",
                )
            )
        return np.asarray(found.ys)


def _check_cost(cost: Any, shape: tuple[int, ...], *, kinds: tuple[Any, ...] = (jnp.floating,)) -> None:
    """A function that JAX can trace, of values of this shape to one number of one of these kinds."""
    wanted = "expected a JAX function of the network's values to one real number"
    if not callable(cost):
        raise InputError(f"cost is a {type(cost).__name__}, {wanted}")
    with precision():
        try:
            found = jax.eval_shape(cost, jax.ShapeDtypeStruct(shape, jnp.float64))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"cost fails for values of shape {shape}: {type(error).__name__}: {str(error).splitlines()[0]}\n"
                "  to mend: write it with jax.numpy, so that JAX can trace it"
            ) from error
    if not hasattr(found, "shape") or not any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
        raise InputError(f"cost gives {found}, {wanted}")
    if found.shape != ():
        raise InputError(f"cost gives an array of shape {found.shape}, {wanted}")
