"""Kernel matrices of several blocks at once: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.kernel.joint import BlockGraph
from tensorprog.runtime.assembly import Pairs, turned, upper
from tensorprog.runtime.gram import Layers, Sharp
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import (
    Hypers,
    Leaves,
    OfPairs,
    Steps,
    by_inputs,
    draws,
    float_dtype,
    kinked,
    norms_members,
    pair_entries,
    parted,
    sharpness,
    steps,
    whole,
)
from tensorprog.runtime.pieces import assemble, matrices
from tensorprog.runtime.refine import ANGLE_OF_OUTPUTS, ANGLE_OF_POSITIONS, Refine, in_float64, unlike

__all__ = ["BlockFunctions", "Blocks", "block_functions", "partners_of"]

MANY = 2**16  # pairs that are computed again at once


class OfBlocks(OfPairs, Protocol):
    """What lowering makes of several outputs: means as well."""

    @property
    def means(self) -> Callable[..., Any]: ...
    @property
    def guarded(self) -> OfBlocks: ...


@dataclass(frozen=True)
class BlockFunctions:
    """The functions that the matrices of blocks are made of, with a batch axis on every array: lowered here, or read from a file.

    block: (x1, x2, hypers) -> every block, of every pair. diagonal: (x, hypers) -> the blocks of every input with itself. means:
    (x, hypers) -> the means. shapes: the blocks' own axes, of which the last `rights` belong to the second side. entries: of all
    arrays of a pair. noise: is anything drawn anew for every input? steps: the block in two steps, where it falls into them. draws: are
    random points drawn for every block? rows: (x1, x2, hypers) -> the blocks of the i-th with the i-th input, where there is such a
    function. kinks, norms, sharp: as of `Functions`. positions: has a pair arrays of them?
    """

    block: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, ...]]
    diagonal: Callable[[Leaves, Hypers], tuple[jax.Array, ...]]
    means: Callable[[Leaves, Hypers], tuple[jax.Array, ...]]
    shapes: tuple[tuple[int, ...], ...]
    rights: tuple[int, ...]
    entries: int
    noise: bool
    steps: Steps | None = None
    draws: bool = False
    rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, ...]] | None = None
    kinks: bool = False
    positions: bool = False
    norms: bool = False
    sharp: Callable[[Leaves, Hypers], jax.Array] | None = None

    def some(self, which: Sequence[int]) -> BlockFunctions:
        """Of these blocks alone."""
        chosen = lambda found: tuple(found[k] for k in which)
        block = lambda x1, x2, hypers: chosen(self.block(x1, x2, hypers))
        diagonal = lambda x, hypers: chosen(self.diagonal(x, hypers))
        two, rows = self.steps, self.rows
        if rows is not None:
            every = rows
            rows = lambda x1, x2, hypers: chosen(every(x1, x2, hypers))
        if two is not None:
            pairs, own = two.pairs, two.own
            two = replace(two, pairs=lambda a, b: chosen(pairs(a, b)), own=lambda a: chosen(own(a)))
        shapes, rights = chosen(self.shapes), chosen(self.rights)
        return replace(self, block=block, diagonal=diagonal, shapes=shapes, rights=rights, steps=two, rows=rows)


def block_functions(graph: BlockGraph, lowered: OfBlocks, off: Collection[str] = ()) -> BlockFunctions:
    """Pairs into blocks: `jax.vmap` over both inputs. off: optimisations that are switched off."""
    shapes, rights = tuple(b.shape for b in graph.blocks), tuple(b.right for b in graph.blocks)
    largest = pair_entries(graph.nodes)
    entries = max(sum(map(math.prod, shapes)), largest)
    two, guarded = parted(lowered, entries, off), lowered.guarded
    plain, marked = steps(lowered, entries, off), steps(guarded, entries, off)

    def block(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        return tuple(marked.pairs(plain.states(x1, hypers), plain.states(x2, hypers)))

    def own(which: Callable[..., Any]) -> Callable[[Leaves, Hypers], tuple[jax.Array, ...]]:
        return lambda x, hypers: by_inputs(lambda leaves: which(lowered.state(leaves, hypers)), x, entries)

    def rows(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        return jax.vmap(guarded.pair)(plain.states(x1, hypers), plain.states(x2, hypers))

    diagonal, means = own(guarded.diagonal), own(guarded.means)
    return BlockFunctions(
        block, diagonal, means, shapes, rights, entries, graph.noise, two, draws(graph.nodes), rows, kinked(graph.nodes), largest > 1,
        norms_members(graph.nodes), sharpness(lowered, plain.states),
    )  # fmt: skip


class Blocks:
    """The matrices of blocks. partners: for each block (u, v) which one is (v, u). off: optimisations that are switched off."""

    def __init__(self, made: BlockFunctions, partners: Sequence[int], off: Collection[str] = ()):
        self._shapes, self._noise = made.shapes, made.noise
        self._partners = [(k, made.rights[k]) for k in partners]
        self._names = tuple(map(str, range(len(made.shapes))))
        cached = int(not ("rows" in off or made.draws))
        self._layers = Layers(made.steps or whole(made), self._names, made.entries, cached)
        self._off = frozenset(off)
        self._block, self._diagonal, self._means = jax.jit(made.block), jax.jit(made.diagonal), jax.jit(made.means)
        self._norms = made.norms and not made.draws
        self.refine = None if self._norms else _refined(made)

    def means(self, x: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        """The means of every input, (N, ..)."""
        return self._means(x, hypers)

    def diagonal(self, x: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        """The blocks of every input with itself, (N, ..)."""
        if self._in_float64(x, hypers):
            return tuple(in_float64(lambda a, _, values: list(self._diagonal(a, values)), x, None, hypers))
        return self._diagonal(x, hypers)

    def _in_float64(self, *arguments: Any) -> bool:
        return self._norms and float_dtype(arguments[0]) == np.float32 and not is_traced(arguments)

    def __call__(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, loose: bool = False) -> list[jax.Array]:
        """Every block between all inputs, (N1, N2, ..); of one set of inputs exactly symmetric. loose: of `Layers.check`."""
        other = x1 if x2 is None else x2
        n1, n2, dtype = x1[0].shape[0], other[0].shape[0], float_dtype(x1)
        shapes = [(n1, n2, *shape) for shape in self._shapes]
        if n1 == 0 or n2 == 0:
            return [jnp.zeros(shape, dtype) for shape in shapes]
        if self._in_float64(x1, x2, hypers):
            return in_float64(self, x1, x2, hypers)
        if is_traced((x1, x2, hypers)):
            found = list(self._block(x1, other, hypers))
            if x2 is None:
                sides = enumerate(zip(found, self._partners, strict=True))
                found = [jnp.where(upper(a.shape, k, p), a, turned(found[p], axes)) for k, (a, (p, axes)) in sides]
        else:
            second = x1 if x2 is None and "symmetry" in self._off else x2
            made = matrices(shapes, np.dtype(dtype), x1, self._partners, "reuse" not in self._off)
            pieces = self._layers.pieces(x1, second, hypers, self._names, loose)
            threads = "threads" not in self._off
            try:
                found = assemble(made, pieces, self._names, second is None, threads, lambda items, total: items)
            except Sharp:
                return in_float64(partial(self, loose=True), x1, x2, hypers)
        if x2 is None and self._noise:
            at = jnp.arange(n1)
            found = [k.at[at, at].set(own) for k, own in zip(found, self._diagonal(x1, hypers), strict=True)]
        return found

    def mended(
        self, found: Sequence[jax.Array], near: np.ndarray, x1: Leaves, x2: Leaves | None, hypers: Hypers
    ) -> list[jax.Array]:
        """The blocks with those pairs that are near, and not of equal inputs, computed again in float64."""
        assert self.refine is not None
        every = Pairs(*np.nonzero(np.triu(near) if x2 is None else near))
        keep = np.full(len(every.i), True) if self._noise else unlike(x1, x1 if x2 is None else x2, every)
        pairs = Pairs(every.i[keep], every.j[keep])
        whole = list(found)
        sizes = [math.prod(shape) for shape in self._shapes]
        for start in range(0, len(pairs.i), MANY):
            i, j = pairs.i[start : start + MANY], pairs.j[start : start + MANY]
            flat = self.refine.exact(x1, x1 if x2 is None else x2, hypers, Pairs(i, j))
            values = [
                part.reshape(-1, *shape)
                for part, shape in zip(np.split(flat, np.cumsum(sizes)[:-1], 1), self._shapes, strict=True)
            ]
            whole = [k.at[i, j].set(value) for k, value in zip(whole, values, strict=True)]
            if x2 is None:
                for k, (partner, right) in enumerate(self._partners):
                    whole[k] = whole[k].at[j, i].set(turned(values[partner][None], right)[:, 0])
        return whole


def _refined(made: BlockFunctions) -> Refine | None:
    """What computes near pairs again, where kernels in float32 need it."""
    if made.rows is None or made.draws or not made.kinks:
        return None
    rows, count = made.rows, lambda a: (len(a), -1)

    def flat(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[None, jax.Array]:
        return None, jnp.concatenate([a.reshape(count(a)) for a in rows(x1, x2, hypers)], 1)

    angle = ANGLE_OF_POSITIONS if made.positions else ANGLE_OF_OUTPUTS
    return Refine(flat, made.entries, angle)  # type: ignore[arg-type]


def partners_of(outputs: int, kernels: int) -> list[int]:
    """For each block (u, v) of some outputs, row by row and kernel by kernel, which one is (v, u)."""
    n = outputs
    return [k - k % n**2 + (k % n) * n + k % n**2 // n for k in range(kernels * n**2)]
