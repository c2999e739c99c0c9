"""Primitives that reduce positions, windows of them, or the width: sums, maxima, pooling, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import sympy

from tensorprog.frontend import contract
from tensorprog.frontend.build import lincomb, nonlin, to_var
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Squares, Value, Var, unit_shape, width_axis
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["cumsum", "reduce_extremum", "reduce_sum", "window_max", "window_min", "window_sum"]


def reduce_sum(eqn: Equation, x: Value) -> Value:
    """A sum over positions, or over the width."""

    if isinstance(x, Squares):
        return contract.sum_of_squares(x.param, tuple(eqn.params[0]["axes"]))
    return contract.sum_over(to_var(x), tuple(eqn.params[0]["axes"]))


def reduce_extremum(function: Callable[..., sympy.Expr]) -> Callable[..., Value]:
    """The rule of maxima, or minima, over positions."""

    def rule(eqn: Equation, x: Value) -> Value:
        var = to_var(x)
        axes = tuple(eqn.params[0]["axes"])
        if width_axis(var.layout) in axes:
            raise Refusal(
                "it takes a maximum or minimum over the width (a softmax over the width does too): "
                "the maximum over n coordinates grows with n and has no limit",
                "take maxima and softmaxes over positions, heads or classes, not over hidden coordinates",
            )
        for axis in sorted(axes, reverse=True):
            var = _extremum(function, var, axis)
        return var

    return rule


def _extremum(function: Callable[..., sympy.Expr], var: Var, axis: int) -> Var:
    shape = var.shape
    layout = (*var.layout[:axis], *var.layout[axis + 1 :])
    parts = []
    for k in range(shape[axis]):
        start, stop = ([0] * len(shape), list(shape))
        start[axis], stop[axis] = k, k + 1
        row = map_positions(
            var, position("slice", start=tuple(start), stop=tuple(stop), stride=(1,) * len(shape)),
            (*var.layout[:axis], (), *var.layout[axis + 1 :]),
        )  # fmt: skip
        parts.append(map_positions(row, position("reshape", to=unit_shape(layout)), layout))
    if len(parts) == 1:
        return parts[0]
    symbols = [vector(i) if var.random else parameter(i) for i in range(len(parts))]
    phi = Phi(function(*symbols), *((len(parts), 0) if var.random else (0, len(parts))))
    return nonlin(phi, parts if var.random else [], [] if var.random else parts, var.power)


def window_sum(eqn: Equation, x: Value) -> Value:
    """Sums over windows of positions."""

    p, var = eqn.params[0], to_var(x)
    axis = width_axis(var.layout)
    if axis is not None and (p["window_dimensions"][axis], p["window_strides"][axis], tuple(p["padding"][axis])) != (
        1,
        1,
        (0, 0),
    ):
        raise Refusal("its window reaches over the width", "pool over positions only")
    op = position(
        "window_sum", window=tuple(p["window_dimensions"]), strides=tuple(p["window_strides"]),
        padding=tuple(map(tuple, p["padding"])), base_dilation=tuple(p["base_dilation"]),
        window_dilation=tuple(p["window_dilation"]),
    )  # fmt: skip
    shape = op.shape(var.shape)
    layout = tuple(
        a if i == axis else () if n == 1 else (n,) for i, (a, n) in enumerate(zip(var.layout, shape, strict=True))
    )
    return map_positions(var, op, layout)


def window_max(eqn: Equation, x: Value) -> Value:
    """Max pooling."""

    return _largest_of_windows(eqn, to_var(x))


def window_min(eqn: Equation, x: Value) -> Value:
    """Min pooling."""

    turned = _largest_of_windows(eqn, lincomb([(-1.0, to_var(x))]))
    return lincomb([(-1.0, turned)])


def _largest_of_windows(eqn: Equation, var: Var) -> Var:
    p = eqn.params[0]
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    axes = [i for i, k in enumerate(window) if k != 1 or strides[i] != 1]
    if width_axis(var.layout) in axes:
        raise Refusal("its window reaches over the width", "pool over positions only")
    if any(d != 1 for d in p["base_dilation"]):
        raise Refusal("max pooling with gaps between the positions (base dilation)", "pool the positions themselves")
    op = position(
        "windows", axes=tuple(axes), **{key: tuple(values[i] for i in axes) for key, values in (
            ("window", window), ("strides", strides), ("padding", [tuple(q) for q in padding]),
            ("dilation", p["window_dilation"]),
        )},
    )  # fmt: skip
    try:
        shape = op.shape(var.shape)
    except ValueError as error:
        raise Refusal(str(error), "use less padding") from None
    layout = tuple(
        var.layout[i] if i < len(var.layout) and i not in axes else () if n == 1 else (n,) for i, n in enumerate(shape)
    )
    windows = map_positions(var, op, layout)
    for axis in range(len(shape) - 1, len(var.layout) - 1, -1):
        windows = _extremum(sympy.Max, windows, axis)
    return windows


def cumsum(eqn: Equation, x: Value) -> Value:
    """Running sums over positions."""

    var, axis = to_var(x), eqn.params[0]["axis"]
    if width_axis(var.layout) == axis:
        raise Refusal("a running sum over the width", "run sums over positions only")
    return map_positions(var, position("cumsum", axis=axis, reverse=eqn.params[0]["reverse"]), var.layout)
