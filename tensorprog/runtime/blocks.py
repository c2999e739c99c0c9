"""Kernel matrices of several blocks at once: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.kernel.joint import BlockGraph
from tensorprog.runtime.assembly import turned, upper
from tensorprog.runtime.gram import Layers
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import Hypers, Leaves, OfPairs, by_inputs, draws, float_dtype, pair_entries, steps
from tensorprog.runtime.pieces import assemble, matrices

__all__ = ["Blocks"]


class OfBlocks(OfPairs, Protocol):
    """What lowering makes of several outputs: means as well."""

    @property
    def means(self) -> Callable[..., Any]: ...


class Blocks:
    """The matrices of a graph's blocks. partners: for each block (u, v) which one is (v, u)."""

    def __init__(self, graph: BlockGraph, lowered: OfBlocks, partners: Sequence[int]):
        self._shapes, self._noise = [b.shape for b in graph.blocks], graph.noise
        self._partners = [(k, graph.blocks[k].right) for k in partners]
        entries = max(sum(map(math.prod, self._shapes)), pair_entries(graph.nodes))
        self._names = tuple(map(str, range(len(self._shapes))))
        two = steps(lowered, entries)
        self._layers = Layers(two, self._names, entries, cached=not draws(graph.nodes))
        self._block = jax.jit(lambda x1, x2, hypers: two.pairs(two.states(x1, hypers), two.states(x2, hypers)))
        own = lambda which: jax.jit(
            lambda x, hypers: by_inputs(lambda leaves: which(lowered.state(leaves, hypers)), x, entries)
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
        n1, n2, dtype = x1[0].shape[0], other[0].shape[0], float_dtype(x1)
        shapes = [(n1, n2, *shape) for shape in self._shapes]
        if n1 == 0 or n2 == 0:
            return [jnp.zeros(shape, dtype) for shape in shapes]
        if is_traced((x1, x2, hypers)):
            found = list(self._block(x1, other, hypers))
            if x2 is None:
                sides = enumerate(zip(found, self._partners, strict=True))
                found = [jnp.where(upper(a.shape, k, p), a, turned(found[p], axes)) for k, (a, (p, axes)) in sides]
        else:
            made = matrices(shapes, np.dtype(dtype), x1, self._partners)
            pieces = self._layers.pieces(x1, x2, hypers, self._names)
            found = assemble(made, pieces, self._names, x2 is None, True, lambda items, total: items)
        if x2 is None and self._noise:
            at = jnp.arange(n1)
            found = [k.at[at, at].set(own) for k, own in zip(found, self._diagonal(x1, hypers), strict=True)]
        return found
