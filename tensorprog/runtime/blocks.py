"""Kernel matrices of several blocks at once: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.kernel.joint import BlockGraph
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import Hypers, Leaves, OfPairs, by_inputs, float_dtype, live_flag, pair_entries
from tensorprog.runtime.tiles import tiling

__all__ = ["BlockFunctions", "Blocks", "block_functions", "partners_of"]


class OfBlocks(OfPairs, Protocol):
    """What lowering makes of several outputs: means as well."""

    @property
    def means(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class BlockFunctions:
    """The functions that the matrices of blocks are made of, with a batch axis on every array: lowered here, or read from a file.

    block: (x1, x2, hypers) -> every block, of every pair. diagonal: (x, hypers) -> the blocks of every input with itself. means:
    (x, hypers) -> the means. shapes: the blocks' own axes, of which the last `rights` belong to the second side. entries: of all
    arrays of a pair. noise: is anything drawn anew for every input?
    """

    block: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, ...]]
    diagonal: Callable[[Leaves, Hypers], tuple[jax.Array, ...]]
    means: Callable[[Leaves, Hypers], tuple[jax.Array, ...]]
    shapes: tuple[tuple[int, ...], ...]
    rights: tuple[int, ...]
    entries: int
    noise: bool

    def some(self, which: Sequence[int]) -> BlockFunctions:
        """Of these blocks alone."""
        chosen = lambda found: tuple(found[k] for k in which)
        block = lambda x1, x2, hypers: chosen(self.block(x1, x2, hypers))
        diagonal = lambda x, hypers: chosen(self.diagonal(x, hypers))
        return replace(self, block=block, diagonal=diagonal, shapes=chosen(self.shapes), rights=chosen(self.rights))


def block_functions(graph: BlockGraph, lowered: OfBlocks) -> BlockFunctions:
    """Pairs into blocks: `jax.vmap` over both inputs."""
    shapes = tuple(b.shape for b in graph.blocks)
    entries = max(sum(map(math.prod, shapes)), pair_entries(graph.nodes))

    def block(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        live = live_flag(x1)
        states = [jax.vmap(lambda leaves: lowered.state(leaves, hypers, live))(x) for x in (x1, x2)]
        return jax.vmap(jax.vmap(lambda a, b: lowered.pair(a, b, live), (None, 0)), (0, None))(*states)

    def own(which: Callable[..., Any]) -> Callable[[Leaves, Hypers], tuple[jax.Array, ...]]:
        return lambda x, hypers: by_inputs(lambda leaves: which(lowered.state(leaves, hypers)), x, entries)

    rights = tuple(b.right for b in graph.blocks)
    return BlockFunctions(block, own(lowered.diagonal), own(lowered.means), shapes, rights, entries, graph.noise)


class Blocks:
    """The matrices of blocks. partners: for each block (u, v) which one is (v, u)."""

    def __init__(self, made: BlockFunctions, partners: Sequence[int]):
        self._shapes, self._partners, self._noise = made.shapes, tuple(partners), made.noise
        self._right, self._entries = made.rights, made.entries
        self._block, self._diagonal, self._means = jax.jit(made.block), jax.jit(made.diagonal), jax.jit(made.means)

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


def partners_of(outputs: int, kernels: int) -> list[int]:
    """For each block (u, v) of some outputs, row by row and kernel by kernel, which one is (v, u)."""
    n = outputs
    return [k - k % n**2 + (k % n) * n + k % n**2 // n for k in range(kernels * n**2)]


def _turned(block: jax.Array, right: int) -> jax.Array:
    """K[x, x'] as K[x', x]: both inputs change places, and the axes of both sides."""
    left = block.ndim - 2 - right
    return block.transpose((1, 0, *range(2 + left, 2 + left + right), *range(2, 2 + left)))
