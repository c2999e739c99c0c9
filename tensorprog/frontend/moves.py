"""Primitives that move and select positions: the rows of `frontend.primitives` for them."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tensorprog.frontend.build import constant, lincomb, nonlin, to_var
from tensorprog.frontend.cutting import parts_along, whole
from tensorprog.frontend.division import finer_origins
from tensorprog.frontend.joining import stack_steps
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import (
    WIDTHS,
    Axis,
    Division,
    Known,
    Layout,
    Param,
    Value,
    Var,
    axis_of,
    unit_shape,
    width_axis,
)
from tensorprog.ir import Phi, Position, position
from tensorprog.ir.phi import parameter, snap

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["at_unit", "broadcast", "gather", "reshape", "rev", "tile", "transpose"]


def at_unit(var: Var, pair: tuple[int, int]) -> int:
    """A size seen at two widths, at unit width."""
    s1, s2 = pair
    if s1 == s2:
        return s1
    if var.det:
        return 1
    total = sum((w for w, _ in var.blocks), Fraction(0))
    size = Fraction(s2 - s1, WIDTHS[1] - WIDTHS[0]) / total
    if size.denominator != 1 or size * total * WIDTHS[0] != s1:
        raise Refusal(
            f"it makes an axis of size {s1} at width {WIDTHS[0]} and {s2} at width {WIDTHS[1]} out of a width of {total} n"
        )
    return int(size)


def transpose(eqn: Equation, x: Value) -> Value:
    """The axes in another order."""
    order = tuple(eqn.params[0]["permutation"])
    if isinstance(x, Param):
        return replace(x, axes=tuple(x.axes[i] for i in order))
    var = to_var(x)
    return map_positions(var, position("transpose", permutation=order), tuple(var.layout[i] for i in order))


def reshape(eqn: Equation, x: Value) -> Value:
    """The same entries in another shape; the width stays whole."""
    if eqn.primitive == "reshape" and eqn.params[0].get("dimensions") is not None:
        raise Refusal("a reshape in another than row-major order", "transpose first, then reshape")
    shapes = eqn.out_shapes()
    if 0 in shapes[0]:
        raise Refusal("it has no entries", "take windows and slices that leave some of the positions")
    if isinstance(x, Param) and (kept := _reshape_param(x, shapes)) is not None:
        return kept
    var = to_var(x)
    while (split := _splits_width(var, shapes)) is not None:
        var = _split_width(var, *split)
    layout = _regroup(var, shapes)
    return map_positions(var, position("reshape", to=unit_shape(layout)), layout)


def _splits_width(var: Var, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, int] | None:
    """The width axis, and into how many parts a reshape splits it (heads, groups), where it does."""
    axis = width_axis(var.layout)
    if axis is None or var.det or len(var.layout[axis]) != 1:
        return None
    sizes = whole(var)
    before = [math.prod(s[i] for s in sizes[:axis]) for i in (0, 1)]
    full, at = sizes[axis], [1, 1]
    for target in zip(*shapes, strict=True):
        if at == before and target[0] == target[1] and target[0] > 1 and all(w % target[0] == 0 for w in full):
            return axis, target[0]
        at = [a * t for a, t in zip(at, target, strict=True)]
    return None


def _split_width(var: Var, axis: int, count: int) -> Var:
    """(.., n, ..) as (.., count, n / count, ..): blocks of coordinates become positions."""
    return stack_steps(parts_along(var, axis, count), axis)  # type: ignore[return-value]


def _reshape_param(param: Param, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Param | None:
    """Axes of size one come and go without committing a parameter."""
    rest = [(a, axis) for a, axis in zip(param.axes, param.undivided, strict=True) if axis]
    axes: list[int | None] = []
    for pair in zip(*shapes, strict=True):
        if pair == (1, 1):
            axes.append(None)
        elif rest and axis_of(pair) == rest[0][1]:
            axes.append(rest.pop(0)[0])
        else:
            return None
    return None if rest else replace(param, axes=tuple(axes))


def _regroup(var: Var, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Layout:
    """The layout after a reshape: factors keep their order; finite ones may split, a width one may not."""
    factors = [f for axis in var.layout for f in axis]
    layout: list[Axis] = []
    for target in zip(*shapes, strict=True):
        axis: list[int | Fraction] = []
        size = (1, 1)
        while size != target:
            if not factors:
                raise Refusal("the sizes of the reshape do not fit together")
            factor = factors.pop(0)
            sizes = (factor, factor) if isinstance(factor, int) else tuple(int(factor * w) for w in WIDTHS)
            need = (target[0] // size[0], target[1] // size[1])
            if need[0] % sizes[0] == 0 and need[1] % sizes[1] == 0:
                axis.append(factor)
                size = (size[0] * sizes[0], size[1] * sizes[1])
            elif isinstance(factor, int) and need[0] == need[1] and factor % need[0] == 0:
                axis.append(need[0])
                factors.insert(0, factor // need[0])
                size = target
            elif isinstance(factor, Fraction) and var.random and (by := _interleaved(var, shapes)) is not None:
                raise finer_origins([node for _, node in var.blocks], by)
            elif isinstance(factor, Fraction) and var.det and need[0] == need[1] and sizes[0] % need[0] == 0:
                raise Refusal("it splits the width axis of a constant", "make the constant in the shape it is used in")
            else:
                raise Refusal(
                    "it splits or interleaves the width axis",
                    "keep the width as an axis of its own; reshape only the other axes",
                )
        layout.append(tuple(axis))
    return tuple(layout)


def _interleaved(var: Var, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Division | None:
    """The positions that a reshape makes of coordinates; None where their number is not fixed, or where the width stays whole."""
    factors = [f for axis in var.layout for f in axis]
    place = next((i for i, f in enumerate(factors) if isinstance(f, Fraction)), None)
    targets = list(zip(*shapes, strict=True))
    wide = [i for i, (a, b) in enumerate(targets) if a != b]
    if place is None or len(wide) != 1 or len(var.blocks) > 1:
        return None
    have = [math.prod(f for f in part if isinstance(f, int)) for part in (factors[:place], factors[place + 1 :])]
    want = [math.prod(a for a, _ in part) for part in (targets[: wide[0]], targets[wide[0] + 1 :])]
    if any(w % h for w, h in zip(want, have, strict=True)) or want == have:
        return None
    return Division(want[0] // have[0], want[1] // have[1])


def broadcast(eqn: Equation, x: Value) -> Value:
    """Copies along new or stretched axes."""
    shapes, places = eqn.out_shapes(), tuple(eqn.params[0]["broadcast_dimensions"])
    if isinstance(x, Param) and all(
        pair == (1, 1) or (i in places and axis_of(pair) == x.undivided[places.index(i)])
        for i, pair in enumerate(zip(*shapes, strict=True))
    ):
        return replace(x, axes=tuple(x.axes[places.index(i)] if i in places else None for i in range(len(shapes[0]))))
    var = to_var(x)
    layout: list[Axis] = []
    for i, pair in enumerate(zip(*shapes, strict=True)):
        own = var.layout[places.index(i)] if i in places else ()
        layout.append(own if own else axis_of(pair))
    if var.random and sum(isinstance(f, Fraction) for axis in layout for f in axis) > (
        var.blocks[0][1].type.width is not None
    ):
        raise Refusal(
            "it spreads a hidden value or an output along a second width axis",
            "multiply by a weight to change coordinates; an output of finite size cannot go back into the width",
        )
    return map_positions(var, position("broadcast", to=unit_shape(tuple(layout)), axes=places), tuple(layout))


def tile(eqn: Equation, x: Value) -> Value:
    """Copies along each axis: a new axis before it, and the two made one."""
    var, reps = to_var(x), tuple(eqn.params[0]["reps"])
    axis = width_axis(var.layout)
    if axis is not None and reps[axis] != 1:
        raise Refusal(
            "it repeats hidden coordinates along the width",
            "repeat positions only, or concatenate the vector with itself",
        )
    split = tuple(part for axis, k in zip(var.layout, reps, strict=True) for part in (() if k == 1 else (k,), axis))
    shape = tuple(n for size, k in zip(var.shape, reps, strict=True) for n in (k, size))
    copied = map_positions(var, position("broadcast", to=shape, axes=tuple(range(1, 2 * len(reps), 2))), split)
    layout = tuple(axis if k == 1 else (k, *axis) for axis, k in zip(var.layout, reps, strict=True))
    return map_positions(copied, position("reshape", to=unit_shape(layout)), layout)


def rev(eqn: Equation, x: Value) -> Value:
    """Positions in reverse order."""
    var, axes = to_var(x), tuple(eqn.params[0]["dimensions"])
    if width_axis(var.layout) in axes:
        raise Refusal(
            "it reverses the order of the hidden coordinates", "leave the width axis in its order: it has none"
        )
    return map_positions(var, position("rev", axes=axes), var.layout)


def _only_window(op: Position, var: Var, indices: np.ndarray) -> tuple[int, ...] | None:
    """Where the one window starts that a gather takes, inside the array; None where it takes several, or one that sticks out."""
    if indices.ndim != 1:
        return None
    start = [0] * len(var.shape)
    for axis, place in zip(op.kw["start_index_map"], indices, strict=True):
        start[axis] = int(place)
    inside = all(0 <= a <= n - k for a, n, k in zip(start, var.shape, op.kw["slice_sizes"], strict=True))
    return tuple(start) if inside else None


def _without_width(indices: Value, start_index_map: tuple[int, ...], axis: int, mode: str) -> Value | None:
    """The indices without those along the width, of windows that span it: such a window starts at zero, as a vmap of `w[i]` says in
    so many numbers. None where it may not be there."""
    column, last = start_index_map.index(axis), len(start_index_map) - 1
    if isinstance(indices, Known):
        if mode == "FILL_OR_DROP" and any(np.any(value[..., column]) for value in indices.values):
            return None
        first, second = (np.delete(value, column, -1) for value in indices.values)
        return Known((first, second))
    if mode == "FILL_OR_DROP" or column not in (0, last):
        return None
    var = to_var(indices)
    start = (*(0 for _ in var.shape[1:]), 1 if column == 0 else 0)
    stop = (*var.shape[:-1], last + (1 if column == 0 else 0))
    layout = (*var.layout[:-1], axis_of((last, last)))
    return map_positions(var, position("slice", start=start, stop=stop, stride=(1,) * len(start)), layout)


def gather(eqn: Equation, x: Value, indices: Value) -> Value:
    """Positions by index."""
    var = to_var(x)
    if isinstance(indices, Var) and indices.random:
        raise Refusal("its indices are hidden values", "index with constants or with the input")
    p = eqn.params[0]
    numbers, axis = p["dimension_numbers"], width_axis(var.layout)
    start_index_map = tuple(numbers.start_index_map)
    sizes = tuple(at_unit(var, pair) for pair in eqn.pairs("slice_sizes"))
    spans = axis is None or sizes[axis] == var.shape[axis]
    if axis is not None and spans and axis in start_index_map:
        trimmed = _without_width(indices, start_index_map, axis, p["mode"].name)
        indices = indices if trimmed is None else trimmed
        start_index_map = tuple(a for a in start_index_map if a != axis or trimmed is None)
    if not spans or axis in start_index_map:
        raise Refusal("it indexes the width", "single hidden coordinates have no limit; index positions only")
    where = to_var(indices)
    op = position(
        "gather", slice_sizes=sizes, mode=p["mode"].name, rank=len(eqn.out_shapes()[0]),
        offset_dims=tuple(numbers.offset_dims), collapsed_slice_dims=tuple(numbers.collapsed_slice_dims),
        start_index_map=start_index_map, operand_batching_dims=tuple(numbers.operand_batching_dims),
        start_indices_batching_dims=tuple(numbers.start_indices_batching_dims), fill_value=p.get("fill_value"),
    )  # fmt: skip
    layout = tuple(axis_of(pair) for pair in zip(*eqn.out_shapes(), strict=True))
    if axis is not None and not var.det and (out := width_axis(layout)) is not None:
        layout = (*layout[:out], var.layout[axis], *layout[out + 1 :])
    if var.random and isinstance(indices, Known) and (start := _only_window(op, var, indices.values[0])) is not None:
        stop = tuple(a + n for a, n in zip(start, sizes, strict=True))
        cut_out = position("slice", start=start, stop=stop, stride=(1,) * len(start))
        inner = tuple(var.layout[i] if i == axis else () if n == 1 else (n,) for i, n in enumerate(sizes))
        window = map_positions(var, cut_out, inner)
        return map_positions(window, position("reshape", to=unit_shape(layout)), layout)
    fill = op.kw["fill_value"]
    if var.det or op.kw["mode"] != "FILL_OR_DROP" or not fill or not math.isfinite(fill):
        return map_positions(var, op, layout, where.node)
    # a number out of bounds is a shift: the map itself is linear, and fills with zeros
    linear = position("gather", **op.kw | {"fill_value": 0})
    ones = map_positions(constant(np.ones(var.shape), var.layout), linear, layout, where.node)
    shift = nonlin(Phi(snap(float(fill)) * (1 - parameter(0)), 0, 1), [], [ones])
    return lincomb([(1.0, map_positions(var, linear, layout, where.node)), (1.0, shift)])
