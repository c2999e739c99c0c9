"""Expectations over Gaussian fields, by randomly shifted lattices.

Points of a lattice, as standard normal vectors, times the Cholesky factor of the field's covariance give its values; the
program's own instructions are run on them. The spread between the shifts is the standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_rules.sampling import SHIFTS, factor, normal_points
from tensorprog.ir import Node
from tensorprog.kernel.body import value_of
from tensorprog.kernel.fields import CHUNK, mixed_size
from tensorprog.kernel.graph import MIXED, Leaf, Sampled
from tensorprog.kernel.questions import LETTERS
from tensorprog.lower.einsum import contract
from tensorprog.lower.samples import of_samples

__all__ = ["sampled"]


def sampled(q: Sampled, args: Sequence[jax.Array], dtype: jnp.dtype, shift: jax.Array | None) -> jax.Array:
    """The value. shift: take the points of this one shift alone; their spread is the standard error."""
    covariances = [a.astype(dtype) for a in args[: len(q.pairs)]]
    arrays = {}
    for (node, side), value in zip(q.scalars, args[len(q.pairs) :], strict=True):
        arrays[node, side] = value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
    drawn = _Group.of(q, covariances, linear=False, dtype=dtype)
    linear = _Group.of(q, covariances, linear=True, dtype=dtype)
    directions = linear.first_side(q) if linear.leaves else 1
    per_shift = max(CHUNK, q.points // SHIFTS)

    def chunk(which: jax.Array, start: jax.Array) -> jax.Array:
        normal = normal_points(which, start, CHUNK, drawn.dimension, dtype)
        fields = jnp.einsum("pk,...ik->p...i", normal, drawn.lower)

        def along(k: jax.Array) -> jax.Array:
            """The product's mean with the linear Gaussians at one column of their factor."""
            column = lax.dynamic_index_in_dim(linear.lower, k, -1, keepdims=False) if linear.leaves else linear.lower
            return _mean_product(q, drawn, fields, linear, column, arrays, dtype)

        return jnp.sum(lax.map(along, jnp.arange(directions)), axis=0) if linear.leaves else along(jnp.asarray(0))

    shifts = jnp.arange(SHIFTS) if shift is None else shift[None]
    starts = np.arange(0, per_shift, CHUNK)
    places = (jnp.repeat(shifts, len(starts)), jnp.asarray(np.tile(starts, len(shifts))))
    add = lambda total, place: (total + chunk(place[0], place[1]), None)
    total, _ = lax.scan(add, jnp.zeros(q.shape, dtype), places)
    return total / len(places[0])


@dataclass(frozen=True)
class _Group:
    """Some of the leaves as one vector: places[i] is where the i-th leaf's mixed places stand in it, lower the factor of
    their covariance, (carried axes.., dimension, dimension)."""

    leaves: dict[int, Leaf]
    places: dict[int, slice]
    dimension: int
    lower: jax.Array

    @classmethod
    def of(cls, q: Sampled, covariances: Sequence[jax.Array], *, linear: bool, dtype: jnp.dtype) -> _Group:
        leaves = {i: leaf for i, leaf in enumerate(q.leaves) if leaf.linear == linear}
        places, at = {}, 0
        for i, leaf in leaves.items():
            places[i] = slice(at, at + mixed_size(leaf))
            at += mixed_size(leaf)
        whole = jnp.zeros((*q.sizes, at, at), dtype)
        for (i, j, carried), array in zip(q.pairs, covariances, strict=True):
            if i in leaves and j in leaves:
                block = _block(q, array, carried, leaves[i], leaves[j])
                whole = whole.at[..., places[i], places[j]].set(block)
                if i != j:
                    whole = whole.at[..., places[j], places[i]].set(jnp.swapaxes(block, -1, -2))
        return cls(leaves, places, at, factor(whole))

    def first_side(self, q: Sampled) -> int:
        """How many of the directions the first side's function depends on: the factor is triangular."""
        return max((self.places[i].stop for i, leaf in self.leaves.items() if leaf.side == 0), default=0)


def _block(q: Sampled, array: jax.Array, carried: str, a: Leaf, b: Leaf) -> jax.Array:
    """A covariance with all the carried axes, and the mixed ones as two."""
    order = [carried.index(c) for c in q.carried if c in carried]
    array = jnp.transpose(array, (*order, *range(len(carried), array.ndim)))
    full = tuple(n if c in carried else 1 for c, n in zip(q.carried, q.sizes, strict=True))
    array = array.reshape((*full, mixed_size(a), mixed_size(b)))
    return jnp.broadcast_to(array, (*q.sizes, *array.shape[-2:]))


def _mean_product(
    q: Sampled, drawn: _Group, fields: jax.Array, linear: _Group, column: jax.Array, arrays: dict[tuple[Node, int], jax.Array],
    dtype: jnp.dtype,
) -> jax.Array:  # fmt: skip
    """The mean over the points of u v, with the axes asked for."""
    point = next(c for c in LETTERS if c not in q.carried + "".join(letters for _, letters in q.roots))
    values, specs = [], []
    for place, (root, letters) in enumerate(q.roots):
        side = 0 if q.together else place
        mine = [(i, leaf) for i, leaf in enumerate(q.leaves) if leaf.side == side]
        own = {c for _, leaf in mine for c in leaf.letters}
        extra = "".join(c for c in q.carried if c not in own) if side else ""
        known = []
        for i, leaf in mine:
            if leaf.linear:
                known.append(_arranged(q, leaf, column[..., linear.places[i]], extra))
            else:
                arrange = partial(_arranged, q, leaf, extra=extra)
                known.append(jax.vmap(arrange)(fields[..., drawn.places[i]]))
        scalars = {node: value for (node, s), value in arrays.items() if s == side}
        function = partial(value_of, root, scalars, tuple(leaf.node for _, leaf in mine), function=of_samples)
        for _ in extra:
            function = jax.vmap(function)
        axes = tuple(None if leaf.linear else 0 for _, leaf in mine)
        function = jax.vmap(function, in_axes=axes, axis_size=fields.shape[0])  # a side may be a tangent alone
        values.append(function(*known))
        specs.append(point + extra + letters)
    return contract(f"{','.join(specs)}->{q.out}", values, 1 / fields.shape[0], q.shape, dtype)


def _arranged(q: Sampled, leaf: Leaf, values: jax.Array, extra: str) -> jax.Array:
    """Values (carried axes.., mixed places) as (extra axes.., the variable's own axes)."""
    wanted = extra + "".join(c for c in leaf.letters if c in q.carried)
    values = values[tuple(slice(None) if c in wanted else 0 for c in q.carried)]
    have = "".join(c for c in q.carried if c in wanted)
    mixed = tuple(n for c, n in zip(leaf.letters, leaf.node.type.shape, strict=True) if c == MIXED)
    values = values.reshape((*values.shape[:-1], *mixed))
    places = iter(range(len(have), values.ndim))
    order = [have.index(c) for c in extra]
    order += [next(places) if c == MIXED else have.index(c) for c in leaf.letters if c != "1"]
    values = jnp.transpose(values, order)
    return values.reshape((*values.shape[: len(extra)], *leaf.node.type.shape))
