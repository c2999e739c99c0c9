"""Pairs of an input with itself: the values are those of the input, the derivatives those of a pair, whose two sides move apart.

The covariance of an input with its copy is computed by another sum than its variance, and what the two round differently would look
like an angle. So the values of the input itself stand in its place. Their derivatives do not: (K(x, x) + K(x', x')) / 2 has the slopes
that K(x, x') has at x = x', by symmetry, but not its second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ntk_rules.pieces import has_kinks
from tensorprog.kernel.graph import Apply, Combine, Contract, Data, Expect, Quantity, Shifts, Tilted, Zero, quantities

__all__ = ["Meeting", "as_one", "differentiable", "meetings", "with_value"]

# Of an expectation: the places of a covariance and of the two variances that it is where positions meet, and the letters of these.
Meeting = tuple[int, int, int, tuple[tuple[str, str], ...]]


def with_value(where: jax.Array, value: jax.Array, function: jax.Array) -> jax.Array:
    """A function with other values in some places, and its own derivatives of every order. (JAX forgets rules of derivatives inside loops
    that are differentiated twice, but not where gradients stop.)"""
    moving = jnp.where(jnp.isfinite(function), function, 0)
    nothing = moving - lax.stop_gradient(moving)
    return jnp.where(where, lax.stop_gradient(value) + nothing, function)


@jax.custom_jvp
def as_one(same: jax.Array, variance: jax.Array, covariance: jax.Array) -> jax.Array:
    """The covariance of a Gaussian of an input with that of its copy: exactly the variance where derivatives are taken, which are then those at
    correlation 1, or their finite parts. The value of the kernel is replaced in the end, and needs no such care."""
    return covariance


@as_one.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return with_value(*primals), tangents[2]


def meetings(q: Expect) -> Iterator[Meeting | None]:
    """The covariances that are variances where the positions of one input meet, or the two inputs of a pair are one; None for one of which it
    is not known."""
    place = {entry: k for k, entry in enumerate(q.expectation.needs)}
    for i, j in q.alike:
        k, first, second = place[i, j], place.get((i, i)), place.get((j, j))
        if first is None or second is None:
            yield None
            continue
        if (q.operands[first].side == q.operands[second].side) == q.cross:
            continue
        parted = tuple((a, b) for a, b in zip(q.letters[first], q.letters[second], strict=True) if a != b)
        if not (parted or q.cross):
            continue
        known = set(q.letters[k]) - {"1"}
        letters = {a for pair in parted for a in pair} | (set(q.letters[first]) - {"1"} if q.cross else set())
        yield (k, first, second, parted) if letters <= known else None


def differentiable(ends: Iterable[Quantity]) -> bool:
    """Are the derivatives of a pair right where its two inputs are one? Kinks need to be met exactly, which sampling never does."""
    cross = [q for q in quantities(ends) if getattr(q, "cross", False)]
    return all(_smooth(q) or (isinstance(q, Expect) and None not in meetings(q)) for q in cross)


def _smooth(q: Quantity) -> bool:
    if isinstance(q, Tilted):
        return all(_smooth(inner) for _, part in q.parts for inner in quantities([part]))
    if isinstance(q, Expect):
        return not has_kinks(q.function)
    return isinstance(q, (Apply, Combine, Contract, Data, Shifts, Zero))
