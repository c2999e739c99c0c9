"""Kernel matrices of several blocks at once: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.kernel.joint import BlockGraph
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import Hypers, Leaves, OfPairs, by_inputs, float_dtype, live_flag, pair_entries
from tensorprog.runtime.tiles import tiling

__all__ = ["Blocks"]


class OfBlocks(OfPairs, Protocol):
    """What lowering makes of several outputs: means as well."""

    @property
    def means(self) -> Callable[..., Any]: ...


class Blocks:
    """The matrices of a graph's blocks. partners: for each block (u, v) which one is (v, u)."""

    def __init__(self, graph: BlockGraph, lowered: OfBlocks, partners: Sequence[int]):
        self._shapes, self._partners, self._noise = [b.shape for b in graph.blocks], tuple(partners), graph.noise
        self._right = [b.right for b in graph.blocks]
        self._entries = max(sum(map(math.prod, self._shapes)), pair_entries(graph.nodes))

        def block(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
            live = live_flag(x1)
            states = [jax.vmap(lambda leaves: lowered.state(leaves, hypers, live))(x) for x in (x1, x2)]
            return jax.vmap(jax.vmap(lambda a, b: lowered.pair(a, b, live), (None, 0)), (0, None))(*states)

        self._block = jax.jit(block)
        own = lambda which: jax.jit(
            lambda x, hypers: by_inputs(lambda leaves: which(lowered.state(leaves, hypers)), x, self._entries)
        )
        self._diagonal, self._means = own(lowered.diagonal), own(lowered.means)

    def means(self, x: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        """The means of every input, (N, ..)."""
        return self._means(x, hypers)

    def diagonal(self, x: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        """The blocks of every input with itself, (N, ..)."""
        return self._diagonal(x, hypers)

    def __call__(self, x1: Leaves, x2: Leaves | None, hypers: Hypers) -> list[jax.Array]:
        """Every block between all inputs, (N1, N2, ..); of one set of inputs exactly symmetric."""
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        if n1 == 0 or n2 == 0:
            return [jnp.zeros((n1, n2, *shape), float_dtype(x1)) for shape in self._shapes]
        found = (
            list(self._block(x1, other, hypers)) if self._at_once(x1, other, hypers) else self._tiled(x1, other, hypers)
        )
        if x2 is None:
            found = self._symmetric(found)
            if self._noise:
                at = jnp.arange(n1)
                found = [k.at[at, at].set(own) for k, own in zip(found, self._diagonal(x1, hypers), strict=True)]
        return found

    def _tiling(self, x1: Leaves, x2: Leaves) -> Any:
        size = self._entries * np.dtype(float_dtype(x1)).itemsize
        return tiling(x1[0].shape[0], x2[0].shape[0], size, symmetric=False)

    def _at_once(self, x1: Leaves, x2: Leaves, hypers: Hypers) -> bool:
        return is_traced((x1, x2, hypers)) or len(self._tiling(x1, x2)) == 1

    def _tiled(self, x1: Leaves, x2: Leaves, hypers: Hypers) -> list[jax.Array]:
        tiles = self._tiling(x1, x2)
        n1, n2 = x1[0].shape[0], x2[0].shape[0]
        out = [np.empty((n1, n2, *shape), float_dtype(x1)) for shape in self._shapes]
        for i, j in tiles:
            rows, columns = slice(i, i + tiles.rows), slice(j, j + tiles.columns)
            made = self._block([leaf[rows] for leaf in x1], [leaf[columns] for leaf in x2], hypers)
            for whole, part in zip(out, made, strict=True):
                whole[rows, columns] = np.asarray(part)
        return [jnp.asarray(whole) for whole in out]

    def _symmetric(self, found: list[jax.Array]) -> list[jax.Array]:
        """What stands above the diagonal of blocks stands below it too."""
        out = list(found)
        for k, partner in enumerate(self._partners):
            turned = _turned(found[k], self._right[k])
            if k < partner:
                out[partner] = turned
            elif k == partner:
                n = found[k].shape[0]
                upper = (np.arange(n)[:, None] <= np.arange(n)).reshape(n, n, *[1] * (found[k].ndim - 2))
                out[k] = jnp.where(upper, found[k], turned)
        return out


def _turned(block: jax.Array, right: int) -> jax.Array:
    """K[x, x'] as K[x', x]: both inputs change places, and the axes of both sides."""
    left = block.ndim - 2 - right
    return block.transpose((1, 0, *range(2 + left, 2 + left + right), *range(2, 2 + left)))
