"""A kernel as a user calls it, wherever its functions come from: compiled here, or loaded from an archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules.promotion import any_ranks
from tensorprog.ir import Input
from tensorprog.runtime.gram import Gram
from tensorprog.runtime.inputs import check_hypers, check_inputs, is_traced
from tensorprog.runtime.kernel import GET, Hypers, KernelResult, Leaves, check_get, float_dtype
from tensorprog.runtime.progress import progress_bar

__all__ = ["KernelFunction", "asked", "filled", "rounded"]


class Checked(NamedTuple):
    """What a kernel is computed of. dtype: of the results."""

    x1: Leaves
    x2: Leaves | None
    hypers: Hypers
    dtype: Any


def widened(leaves: Leaves) -> Leaves:
    """The same, half precision as float32: it knows an angle to a digit or two, and every layer would lose some of that."""
    return [leaf.astype(jnp.float32) if _is_half(leaf.dtype) else leaf for leaf in leaves]


def rounded(kernels: Sequence[jax.Array], dtype: Any) -> list[jax.Array]:
    """Results of the dtype of the inputs."""
    return [k.astype(dtype) if _is_half(dtype) else k for k in kernels]


def _is_half(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and np.dtype(dtype).itemsize < 4


class KernelFunction:
    """Checks what it is called with, and hands it to a `Gram`. Subclasses say which, as `_gram`."""

    _gram: Gram
    _tolerance: float | None = None

    def __init__(
        self, inputs: Sequence[Input], tree: Any, hypers: dict[str, float], nonnegative: frozenset[str], noise: bool = False
    ):  # fmt: skip
        """noise: is anything drawn anew for every input, so that an input and its copy are two?"""
        self._inputs, self._tree, self._hypers, self._nonnegative = tuple(inputs), tree, hypers, nonnegative
        self._more_hypers: dict[str, Any] = {}
        self._noise = noise

    @property
    def hypers(self) -> dict[str, float]:
        """The named arguments that `tp.hyper` opened, with their defaults."""
        return dict(self._hypers)

    @property
    def tolerance(self) -> float | None:
        """The relative error allowed to expectations without a closed form; None for 1e-12."""
        return self._tolerance

    @any_ranks
    def __call__(
        self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, progress: bool = False, **hypers: Any
    ) -> Any:
        """The kernel matrices between two sets of inputs.

        x1, x2: arrays (N1, *example) and (N2, *example), or pytrees of them like the example input; NumPy or JAX.
        Without x2, the gram matrix of x1: exactly symmetric; only its tiles on and above the diagonal are computed.
        Where the network draws noise for every input (`nn.dropout`), the diagonal of a gram matrix has one draw of each input with
        itself, every other entry, and all of k(x1, x2), two draws.
        get: "nngp", "ntk" or a tuple of them (default: both). progress: show a bar. hypers: values of hyperparameters, by name.

        Returns a `KernelResult` with fields nngp and ntk, of shape (N1, N2) (for an output with position axes of
        shape S: (N1, N2, *S, *S)), or with `get` one array, or a tuple. The dtype follows the inputs, as JAX sees them:
        float64 needs `jax_enable_x64`; kernels of float16 and bfloat16 are computed in float32, and rounded. Memory
        besides the result is bounded by `tensorprog.runtime.TILE_BYTES`, whatever N1 and N2.

        Raises InputError for wrong structures, shapes or dtypes, NaN or infinite inputs and bad hyperparameters.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(3))
            >>> kernel(jnp.eye(3), jnp.ones((2, 3))).ntk.shape
            (3, 2)
        """
        names = check_get(get)
        leaves1, leaves2, values, dtype = self._checked(x1, x2, hypers)
        if is_traced((leaves1, leaves2, values)):
            found = self._gram.traced(leaves1, leaves2, values, names)
        else:
            found = self._gram(leaves1, leaves2, values, names, progress_bar(progress))
        if self._noise and leaves2 is None:
            own = dict(zip(GET, self._gram.diagonal(leaves1, values), strict=True))
            at = jnp.arange(len(leaves1[0]))
            found = [k.at[at, at].set(own[name]) for k, name in zip(found, names, strict=True)]
        return asked(get, rounded(found, dtype))

    def _checked(self, x1: Any, x2: Any, hypers: dict[str, Any]) -> Checked:
        """The leaves of both sets of inputs, all hyperparameters, and the dtype of the results."""
        leaves1 = check_inputs(x1, "x1", self._inputs, self._tree)
        leaves2 = None if x2 is None else check_inputs(x2, "x2", self._inputs, self._tree)
        if leaves2 is not None:
            kinds = [jnp.result_type(a, b) for a, b in zip(leaves1, leaves2, strict=True)]
            leaves1, leaves2 = ([a.astype(k) for a, k in zip(x, kinds, strict=True)] for x in (leaves1, leaves2))
        dtype = float_dtype(leaves1)
        leaves1, leaves2 = widened(leaves1), None if leaves2 is None else widened(leaves2)
        values = check_hypers(hypers, self._hypers, self._nonnegative, float_dtype(leaves1)) | self._more_hypers
        return Checked(leaves1, leaves2, values, dtype)

    @any_ranks
    def diag(self, x: Any, *, get: str | Sequence[str] | None = None, **hypers: Any) -> Any:
        """The kernels of each input with itself, shape (N,): what `kernel(x)` has on its diagonal. get, hypers: as for `kernel(x)`."""
        names = check_get(get)
        leaves = check_inputs(x, "x", self._inputs, self._tree)
        dtype, leaves = float_dtype(leaves), widened(leaves)
        values = check_hypers(hypers, self._hypers, self._nonnegative, float_dtype(leaves))
        found = dict(zip(GET, rounded(self._gram.diagonal(leaves, values), dtype), strict=True))
        return asked(get, [found[name] for name in names])

    def __copy__(self) -> Self:
        """Another with the same parts, for what changes one of them. (`__reduce__` of subclasses is for other processes.)"""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: Any) -> Self:
        """Itself: a kernel does not change, and what is compiled is not copied. scikit-learn's `clone` copies what estimators hold."""
        return self


def asked(get: str | Sequence[str] | None, found: Sequence[Any]) -> Any:
    """What was asked for, in the form in which it was asked."""
    if get is None:
        return KernelResult(*found)
    return found[0] if isinstance(get, str) else tuple(found)


def filled(tree: Any) -> Any:
    """Containers of this structure, which are pickled where the structure itself may not be: JAX knows no names of other classes."""
    return jax.tree.unflatten(tree, range(tree.num_leaves))
