"""Kernel matrices as the applications use them: in float64 whatever the session's precision, and flat.

A kernel here is a `tensorprog.Kernel`, a `LoadedKernel`, or any function called like one: (x1, x2=None, *, get,
**hypers) -> matrix. The matrix of an output with axes S, of shape (N1, N2, *S, *S), is read as one of
(N1 |S|) x (N2 |S|): each entry of an output is a value of its own. Targets have the shape (N, *S), or (N, *S, F) for F
independent outputs with the same kernel.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError, explain
from tensorprog.runtime.inputs import real_number
from tensorprog.runtime.kernel import GET

__all__ = ["Grams", "Targets", "as_numpy", "check_number", "check_one", "count", "kept", "precision", "widened"]

ASYMMETRY = 1e-3  # of the largest entry: more than rounding in float32 makes


@contextmanager
def precision(dtype: Any = np.float64) -> Iterator[Any]:
    """Run JAX at this precision inside, whatever it is outside; gives the dtype."""
    kind = check_dtype(dtype)
    with jax.enable_x64(kind == np.float64):
        yield kind


def check_dtype(dtype: Any) -> np.dtype:
    """float32 or float64."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind not in (np.float32, np.float64):
        raise InputError(f"dtype is {dtype!r}, expected float32 or float64")
    return kind


def widened(x: Any, dtype: Any = np.float64) -> Any:
    """A pytree of arrays with its real numbers at this dtype, as NumPy arrays."""

    def leaf(array: Any) -> Any:
        if np.ma.is_masked(array):
            return array  # the kernel names it
        try:
            made = np.asarray(array)
        except (TypeError, ValueError):
            return array  # the kernel names it
        if not jnp.issubdtype(made.dtype, jnp.floating):
            return made
        with np.errstate(over="ignore"):
            found = made.astype(dtype)
        return found if np.isfinite(found).all() else array  # the kernel names what is too large for this dtype

    return jax.tree.map(leaf, x)


def kept(x: Any) -> Any:
    """A pytree of NumPy arrays that stay as they are now, whatever the caller writes into his own arrays later."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf), x)


def as_numpy(tree: Any) -> Any:
    """A pytree with its JAX arrays as NumPy arrays, which are pickled bit by bit: JAX rounds its own where it runs in 32 bits."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def count(x: Any, argument: str) -> int:
    """How many examples a batch of inputs holds."""
    leaves = jax.tree.leaves(x)
    if not leaves or np.ndim(leaves[0]) == 0:
        raise InputError(f"{argument} holds no array with a batch axis, expected (N, *example)")
    return int(np.shape(leaves[0])[0])


class Grams:
    """A kernel with its hyperparameters filled in, giving flat NumPy matrices of one dtype."""

    def __init__(self, kernel: Callable[..., Any], hypers: dict[str, Any], dtype: Any = np.float64):
        if not callable(kernel):
            raise InputError(
                f"kernel is a {type(kernel).__name__}, expected what tp.compile or tp.load returns, or a function called like it"
            )
        if not _takes_get(kernel):
            raise InputError(
                f"kernel is the function {getattr(kernel, '__name__', repr(kernel))!r}, which does not take get=.., as a kernel is called\n"
                "  to mend: if it is a network, compile it first, tp.compile(net, example)"
            )
        self.kernel, self.hypers, self.dtype = kernel, dict(hypers), check_dtype(dtype)
        self.axes: tuple[int, ...] | None = None  # of the output; known after the first matrix

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hypers": as_numpy(self.hypers)}

    def __call__(self, get: str, x1: Any, x2: Any = None) -> np.ndarray:
        """The matrix named by `get`, (N1 |S|, N2 |S|)."""
        return self.both((get,), x1, x2)[0]

    def both(self, get: tuple[str, ...], x1: Any, x2: Any = None) -> list[np.ndarray]:
        """The matrices named by `get`."""
        with precision(self.dtype):
            first = widened(x1, self.dtype)
            second = None if x2 is None else widened(x2, self.dtype)
            found = self.kernel(first, second, get=get, **self.hypers)
            found = [np.asarray(k, self.dtype) for k in self._checked(found, get, first, second)]
        return [self._symmetric(m) if x2 is None else m for m in map(self._flat, found)]

    def _checked(self, found: Any, get: tuple[str, ...], x1: Any, x2: Any) -> list[Any]:
        """What a kernel returned: for each name a matrix of all pairs, with the output's axes twice."""
        made = list(found) if isinstance(found, (list, tuple)) else [found]
        n1 = count(x1, "x")
        sizes = (n1, n1 if x2 is None else count(x2, "x"))
        shapes = [np.shape(k) for k in made]
        if len(made) == len(get) and all(
            s[:2] == sizes and len(s) % 2 == 0 and s[2:][: len(s) // 2 - 1] == s[2:][len(s) // 2 - 1 :] for s in shapes
        ):
            return made
        raise InputError(
            f"kernel: asked for {get}, it returned {len(made)} results of shapes {shapes}, expected {len(get)} of shape {sizes}, or "
            f"{(*sizes, '*S', '*S')} for outputs with axes S"
        )

    def _symmetric(self, matrix: np.ndarray) -> np.ndarray:
        off = float(np.abs(matrix - matrix.T).max(initial=0.0))
        if off > ASYMMETRY * float(np.abs(matrix).max(initial=0.0)):
            raise InputError(
                f"kernel: the matrix of inputs with themselves differs from its transpose by {off:.3g}, expected a symmetric matrix"
            )
        return matrix

    def _flat(self, matrix: np.ndarray) -> np.ndarray:
        if not np.isfinite(matrix).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
            raise InputError(
                explain(
                    f"kernel: entry {where} of the matrix is {matrix[where]}, expected finite numbers",
                    reason="nothing can be solved with such a matrix",
                    mend="look for inputs or hyperparameters at which the network has no limit, or for an overflow",
                )
            )
        half = (matrix.ndim - 2) // 2
        self.axes = matrix.shape[2 : 2 + half]
        order = (0, *range(2, 2 + half), 1, *range(2 + half, 2 + 2 * half))
        size = math.prod(self.axes)
        return matrix.transpose(order).reshape(matrix.shape[0] * size, matrix.shape[1] * size)

    def unflat(self, matrix: np.ndarray) -> np.ndarray:
        """(.., N1 |S|, N2 |S|) as (.., N1, N2, *S, *S)."""
        axes = self.axes or ()
        size, lead = math.prod(axes), matrix.ndim - 2
        n1, n2 = matrix.shape[-2] // size, matrix.shape[-1] // size
        opened = matrix.reshape(*matrix.shape[:-2], n1, *axes, n2, *axes)
        second = lead + 1 + len(axes)
        order = (*range(lead + 1), second, *range(lead + 1, second), *range(second + 1, opened.ndim))
        return opened.transpose(order)


def _takes_get(kernel: Callable[..., Any]) -> bool:
    """Can it be called with get=..? Where Python does not say, it is tried."""
    try:
        inspect.signature(kernel).bind(None, None, get=None)
    except ValueError:
        return True
    except TypeError:
        parameters = inspect.signature(kernel).parameters.values()
        return any(p.name == "get" or p.kind is p.VAR_KEYWORD for p in parameters)
    return True


class Targets:
    """Targets as a flat matrix (N |S|, F), and results shaped like them."""

    def __init__(self, y: Any, n: int, axes: tuple[int, ...], *, name: str = "y", dtype: Any = np.float64):
        self.axes, self.name, self.dtype = tuple(axes), name, np.dtype(dtype)
        self.flat, self.features = self._read(y, n)

    def _read(self, y: Any, n: int) -> tuple[np.ndarray, int | None]:
        if np.ma.is_masked(y) and not np.iscomplexobj(y):
            y = np.ma.filled(np.ma.asarray(y).astype(self.dtype), np.nan)
        kind = ""
        try:
            given = np.asarray(y)
            kind = f" of {given.dtype}" if given.ndim else ""
            if given.dtype.kind in "cSU" or any(
                isinstance(v, (str, bytes)) for v in given.flat if given.dtype == object
            ):
                raise TypeError  # NumPy would drop imaginary parts, and read texts
            with np.errstate(over="ignore"):
                array = given.astype(self.dtype)
        except (TypeError, ValueError):
            raise InputError(f"{self.name} is a {type(y).__name__}{kind}, expected an array of real numbers") from None
        wanted = (n, *self.axes)
        if array.shape[: len(wanted)] != wanted or array.ndim > len(wanted) + 1 or 0 in array.shape[1:]:
            shown = ", ".join(map(str, wanted))
            raise InputError(
                f"{self.name} has shape {array.shape}, expected ({shown},) or ({shown}, outputs): one value for each of the {n} inputs"
            )
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            if np.isfinite(real_number(given[where]) or np.nan):
                raise InputError(
                    f"{self.name} has {given[where]} at {where}, more than {self.dtype} holds\n"
                    "  to mend: take dtype=np.float64, or divide the targets by a number"
                )
            raise InputError(
                f"{self.name} has {array[where]} at {where}, expected finite numbers\n"
                "  to mend: leave out the examples whose value is not known"
            )
        features = array.shape[-1] if array.ndim > len(wanted) else None
        return array.reshape(n * math.prod(self.axes), 1 if features is None else features), features

    def like(self, y: Any, n: int, name: str) -> np.ndarray:
        """Other values for n inputs, flat, checked to have as many outputs as the targets."""
        other = Targets(y, n, self.axes, name=name, dtype=self.dtype)
        if other.features != self.features:
            raise InputError(
                f"{name} has shape {np.shape(y)}, but {self.name} has {self.features or 'no axis of'} outputs: expected the same"
            )
        return other.flat

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """(.., M |S|, F) as (.., M, *S) or (.., M, *S, F)."""
        n = flat.shape[-2] // math.prod(self.axes)
        tail = () if self.features is None else (self.features,)
        return flat.reshape(*flat.shape[:-2], n, *self.axes, *tail)


def check_number(value: Any, what: str, *, positive: bool = False) -> float:
    """A finite number, at least zero (or above it)."""
    number = real_number(value)
    if number is None or not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise InputError(f"{what} is {value!r}, expected a finite number {'> 0' if positive else '>= 0'}")
    return number


def check_one(get: Any, what: str) -> str:
    """The name of one of the two kernels."""
    if not isinstance(get, str) or get not in GET:
        raise InputError(f"{what}: get is {get!r}, expected 'nngp' or 'ntk'")
    return get
