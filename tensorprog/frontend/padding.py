"""Padding of positions, with any value, between and around them, and by negative amounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tensorprog.frontend.build import constant, exact, lincomb, nonlin, to_var
from tensorprog.frontend.cutting import cut, whole
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Value, Var, width_axis
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import parameter

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["pad"]


def pad(eqn: Equation, x: Value, fill: Value) -> Value:
    """New positions of one value around and between the old ones."""
    config = tuple(tuple(c) for c in eqn.params[0]["padding_config"])
    var, filler = to_var(x), to_var(fill)
    axis = width_axis(var.layout)
    if axis is not None and config[axis] != (0, 0, 0):
        raise Refusal("it pads the width", "pad positions only")
    if any(low < 0 or high < 0 for low, high, _ in config):
        return _cropped(var, filler, config)
    return _padded(var, filler, config)


def _cropped(var: Var, filler: Var, config: tuple[tuple[int, int, int], ...]) -> Value:
    """Padding by negative amounts takes away from what the gaps made of the array."""
    wide = _padded(var, filler, tuple((max(low, 0), max(high, 0), gap) for low, high, gap in config))
    starts = [max(-low, 0) for low, _, _ in config]
    stops = [max(n + min(high, 0), start) for n, start, (_, high, _) in zip(wide.shape, starts, config, strict=True)]
    every = whole(wide)
    at = width_axis(wide.layout)
    ends = [every[i] if i == at else (stop, stop) for i, stop in enumerate(stops)]
    return cut(wide, [(start, start) for start in starts], ends, (1,) * len(starts))


def _padded(var: Var, filler: Var, config: tuple[tuple[int, int, int], ...]) -> Var:
    op = position("pad", config=config)
    shape = op.shape(var.shape)
    layout = tuple(
        a if config[i] == (0, 0, 0) else () if shape[i] == 1 else (shape[i],) for i, a in enumerate(var.layout)
    )
    padded = map_positions(var, op, layout)
    if exact(filler) == 0:
        return padded
    inside = np.zeros(shape)
    inside[
        tuple(slice(low, low + (n - 1) * (i + 1) + 1, i + 1) for n, (low, _, i) in zip(var.shape, config, strict=True))
    ] = 1.0
    outside = nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [filler, constant(1.0 - inside, layout)], filler.power)
    return lincomb([(1.0, padded), (1.0, outside)])
