"""Kernels of several outputs as a user calls them, wherever their functions come from: compiled here, or loaded from an archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from ntk_rules.promotion import any_ranks
from tensorprog.runtime.blocks import Blocks
from tensorprog.runtime.call import KernelFunction, asked, rounded
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import check_get, float_dtype
from tensorprog.runtime.refine import in_float64, near_pairs

__all__ = ["JointFunction", "OutputLike"]


class OutputLike(Protocol):
    """One output: its place in what the network returns, and its shape with axes of size one and of copies."""

    @property
    def label(self) -> str: ...
    @property
    def full_shape(self) -> tuple[int, ...]: ...
    @property
    def copies(self) -> tuple[int, ...]: ...


class JointFunction(KernelFunction):
    """Checks what it is called with, and hands it to `Blocks`. Subclasses say which."""

    outputs: tuple[Any, ...]
    _out_tree: Any

    def _blocks(self, names: tuple[str, ...]) -> Blocks:
        """The blocks of the kernels named, one kernel after the other."""
        raise NotImplementedError

    def _mean_blocks(self) -> Blocks:
        raise NotImplementedError

    def _matrices(self, names: tuple[str, ...], x1: Any, x2: Any, hypers: dict[str, Any]) -> list[jax.Array]:
        """The matrices of all blocks; in float32, with pairs of nearly equal inputs in float64."""
        blocks = self._blocks(names)
        narrow = float_dtype(x1) == np.float32 and not is_traced((x1, x2, hypers)) and names != ("nngp",)
        if not narrow or blocks.refine is None:
            return blocks(x1, x2, hypers)
        if any(part.kind == "average" for part in self.outputs):
            return in_float64(blocks, x1, x2, hypers)
        found, count = blocks(x1, x2, hypers), len(self.outputs)
        first = self._blocks(("nngp",))
        nngp = found[: count**2] if names[0] == "nngp" else first(x1, x2, hypers)
        own1 = first.diagonal(x1, hypers)
        own2 = own1 if x2 is None else first.diagonal(x2, hypers)
        which = [place * (count + 1) for place in range(count)]
        kernels = [(nngp[k], own1[k], own2[k]) for k in which]
        near = near_pairs(blocks.refine, kernels, x1, x1 if x2 is None else x2)
        return blocks.mended(found, near, x1, x2, hypers)

    @any_ranks
    def __call__(
        self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, progress: bool = False, **hypers: Any
    ) -> Any:
        """The kernel matrices of all outputs between two sets of inputs.

        x1, x2, get, hypers: as for `tp.Kernel`; progress shows nothing here. For outputs in a dict,
        `nngp["a"]["b"]` has E[a(x1) b(x2)], of shape (N1, N2, *A, *B) with A and B the shapes of `outputs`: a tree, as the network
        returns it, of trees. Features of readouts that are independent copies are given once. In float32, nearly equal inputs are
        computed in float64 where nonlinearities have kinks, and everything where an average over the width is among the outputs; but
        not inside `jax.jit` or `jax.grad`, which keep half the digits of such tangent kernels.

        Raises InputError for bad inputs, UnsupportedError for a tangent kernel that neither program gives (get="nngp" leaves it
        out).
        """
        names = check_get(get)
        leaves1, leaves2, values, dtype = self._checked(x1, x2, hypers)
        found = rounded(self._matrices(names, leaves1, leaves2, values), dtype)
        count = len(self.outputs) ** 2
        trees = [self._nested(found[k * count : (k + 1) * count]) for k in range(len(names))]
        return asked(get, trees)

    @any_ranks
    def diag(self, x: Any, *, get: str | Sequence[str] | None = None, **hypers: Any) -> Any:
        """The kernels of each input with itself, of shape (N, *A, *B). get, hypers: as for `kernel(x)`."""
        names = check_get(get)
        leaves, _, values, dtype = self._checked(x, None, hypers)
        found = rounded(self._blocks(names).diagonal(leaves, values), dtype)
        count = len(self.outputs) ** 2
        return asked(get, [self._nested(found[k * count : (k + 1) * count]) for k in range(len(names))])

    @any_ranks
    def mean(self, x: Any, **hypers: Any) -> Any:
        """The expectation of every output, a tree of arrays (N, *A): zero for readouts, E[h] of a neuron of a hidden layer, and
        what an average over the width converges to."""
        leaves, _, values, dtype = self._checked(x, None, hypers)
        found = rounded(self._mean_blocks().means(leaves, values), dtype)
        return jax.tree.unflatten(self._out_tree, [_once(m, p) for m, p in zip(found, self.outputs, strict=True)])

    def _nested(self, found: Sequence[Any]) -> Any:
        n = len(self.outputs)
        rows = [jax.tree.unflatten(self._out_tree, found[i * n : (i + 1) * n]) for i in range(n)]
        return jax.tree.unflatten(self._out_tree, rows)


def _once(mean: jax.Array, output: OutputLike) -> jax.Array:
    """The means of an output, those of identical copies once."""
    sizes = output.full_shape
    whole = mean.reshape(mean.shape[0], *sizes)
    first = tuple(0 if i in output.copies or n == 1 else slice(None) for i, n in enumerate(sizes))
    return whole[(slice(None), *first)]
