"""Sums over windows of covariances, sum_k K[s + k, t + k]: what a convolution makes of them (Arora et al. 2019, section 4).

Two ways. Axis by axis: shifts along different axes are summed separately, so that the cost grows with the sum of the window's sizes.
Or all at once: with all positions as one axis, every shift is a stretch of one padded array, from which what has come over an edge
is left out. That is one pass over memory along a long axis, where axis by axis there are several along axes of a few entries each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tensorprog.kernel.graph import Shifts

__all__ = ["at_once", "axis_by_axis"]

MOST_SHIFTS = 16  # of a window, beyond which fewer sums repay more passes
MOST_ENTRIES = 2**16  # of an array; which of them come over an edge is part of the code, as constants


@dataclass(frozen=True)
class Shift:
    """One step of a window along one of its axes, in the array with all positions as one axis.

    by: how far. inside: which entries stay within the edges; None for all of them. (Over those of the array's first axis lies the
    padding, whose zeros need no choice.)
    """

    by: int
    inside: np.ndarray | None


def axis_by_axis(q: Shifts, value: jax.Array) -> jax.Array:
    """The sum (or its diagonal s = t), one window axis after the other."""
    kw = q.op.kw
    for places, k, stride, pad, dilation, base in zip(
        q.axes, kw["window"], kw["strides"], kw["padding"], kw["dilation"], kw["base_dilation"], strict=True
    ):
        config = [(0, 0, 0)] * value.ndim
        for axis in places:
            config[axis] = (*pad, base - 1)
        padded = lax.pad(value, jnp.zeros((), value.dtype), config)
        counts = [q.shape[axis] for axis in places]
        total = None
        for offset in range(k):
            part = padded
            for axis, count in zip(places, counts, strict=True):
                start = offset * dilation
                part = lax.slice_in_dim(part, start, start + (count - 1) * stride + 1, stride, axis)
            total = part if total is None else total + part
        assert total is not None
        value = total
    return value


def at_once(q: Shifts, value: jax.Array) -> jax.Array | None:
    """The sum in one pass, with all positions as one axis; None where they do not stay what they are (strides), or where it does not pay."""
    kw = q.op.kw
    keeps = q.shape == value.shape and {*kw["strides"], *kw["base_dilation"]} <= {1}
    if not keeps or math.prod(kw["window"]) > MOST_SHIFTS or not 0 < value.size <= MOST_ENTRIES:
        return None
    axes = [
        _shifts(value.shape, places, [offset * dilation - pad[0] for offset in range(k)])
        for places, k, pad, dilation in zip(q.axes, kw["window"], kw["padding"], kw["dilation"], strict=True)
    ]
    if not all(axes):
        return jnp.zeros(value.size, value.dtype)  # no step of the window stays inside
    edge = sum(max(abs(shift.by) for shift in axis) for axis in axes)
    padded = jnp.pad(value.ravel(), (edge, edge))

    def total(rest: list[list[Shift]], start: int) -> jax.Array:
        if not rest:
            return lax.slice_in_dim(padded, start, start + value.size)
        terms = None
        for shift in rest[0]:
            term = total(rest[1:], start + shift.by)
            term = term if shift.inside is None else jnp.where(shift.inside, term, jnp.zeros((), value.dtype))
            terms = term if terms is None else terms + term
        assert terms is not None
        return terms

    # the first axis inmost: where padding keeps its shifts inside, only their sum is chosen from
    return total(axes[::-1], edge)


def _shifts(shape: tuple[int, ...], places: tuple[int, ...], steps: list[int]) -> list[Shift]:
    """The steps along one axis of a window, which are that along each of the array's axes in `places`."""
    entries = np.arange(math.prod(shape))
    along = np.unravel_index(entries, shape)
    found = []
    for step in steps:
        by = step * sum(math.prod(shape[axis + 1 :]) for axis in places)
        if any(abs(step) >= shape[axis] for axis in places):
            continue
        inside = np.all([(along[a] + step >= 0) & (along[a] + step < shape[a]) for a in places if a], axis=0)
        found.append(Shift(by, None if inside.all() else inside))
    return found
