"""Parts of arrays, between a start and a stop along each axis: positions, blocks of the width, regions of a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from tensorprog.frontend.blocks import take_block
from tensorprog.frontend.build import to_var
from tensorprog.frontend.joining import side_by_side
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal, same_place
from tensorprog.frontend.values import WIDTHS, Axis, Known, Param, Value, Var
from tensorprog.ir import position

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["cut", "dynamic_slice", "parts_along", "slice_", "split", "take_step", "weight_parts", "whole"]


def slice_(eqn: Equation, x: Value) -> Value:
    """Positions, and blocks of the width, from a start to a stop."""
    starts, stops = eqn.pairs("start_indices"), eqn.pairs("limit_indices")
    strides = eqn.params[0]["strides"] or (1,) * len(starts)
    return cut(x, starts, stops, tuple(strides))


def cut(
    x: Value, starts: Sequence[tuple[int, int]], stops: Sequence[tuple[int, int]], strides: tuple[int, ...]
) -> Value:
    """x[start:stop:stride] along every axis; a cut of the width takes a block of coordinates."""
    if isinstance(x, Known):
        cuts = [tuple(slice(a[i], b[i], s) for a, b, s in zip(starts, stops, strides, strict=True)) for i in (0, 1)]
        return Known((x.values[0][cuts[0]], x.values[1][cuts[1]]))
    if isinstance(x, Param) and sum(w is not None for w in x.widths) == 2:
        return _cut_param(x, starts, stops, strides)
    var = to_var(x)
    unit_start, unit_stop, layout = [], [], list(var.layout)
    for i, (axis, start, stop) in enumerate(zip(var.layout, starts, stops, strict=True)):
        if any(isinstance(f, Fraction) for f in axis):
            size = math.prod(axis, start=Fraction(1))
            if strides[i] != 1 or start != (0, 0) or stop != tuple(int(size * w) for w in WIDTHS):
                var = _cut_width(var, i, start, stop, strides[i])
            layout[i] = var.layout[i]
            unit_start.append(0)
            unit_stop.append(var.shape[i])
        else:
            unit_start.append(same_place(start))
            unit_stop.append(same_place(stop))
            count = len(range(start[0], stop[0], strides[i]))
            layout[i] = () if count == 1 else (count,)
    op = position("slice", start=tuple(unit_start), stop=tuple(unit_stop), stride=strides)
    if all(op.same_axis(var.shape)[i] is not None for i in range(len(layout))):
        return var
    return map_positions(var, op, tuple(layout))


def _relative(pair: tuple[int, int]) -> Fraction:
    """An index along a width axis in units of n."""
    place = Fraction(pair[1] - pair[0], WIDTHS[1] - WIDTHS[0])
    if place * WIDTHS[0] != pair[0]:
        raise Refusal(
            f"it cuts the width at {pair[0]} of {WIDTHS[0]} and {pair[1]} of {WIDTHS[1]}: not at a fixed fraction. A fixed number of "
            "coordinates are neurons of a hidden layer, or rows of a weight that give such neurons: no sum over the width, and with the "
            "law of the layer, which need not be Gaussian",
            "for the law of a neuron return the whole layer to tp.joint, as an output of the kind hidden; for a readout take weights of "
            "its own, nn.dense(h, features=1); else cut the width into parts that grow with it",
        )
    return place


def _cut_width(var: Var, i: int, start: tuple[int, int], stop: tuple[int, int], stride: int) -> Var:
    low, high = _relative(start), _relative(stop)
    if stride == 1 and (made := _cut_positions(var, i, low, high)) is not None:
        return made
    if stride != 1:
        raise Refusal("it cuts the width with a stride", "cut it into parts that grow with it, x[: n]")
    var = var if var.det else side_by_side(var, i, "it cuts the width")
    if len(var.layout[i]) > 1:
        raise Refusal(
            "it cuts the width of a constant where positions are flattened into it",
            "make the constant in the shape it is used in",
        )
    layout = (*var.layout[:i], (high - low,), *var.layout[i + 1 :])
    if var.det:
        return Var.of(var.node, layout, var.power)
    blocks, at = [], Fraction(0)
    for width, node in var.blocks:
        begin, end = max(low - at, Fraction(0)), min(high - at, width)
        if begin < end:
            blocks.append((end - begin, node if end - begin == width else take_block(node, begin, end)))
        at += width
    return Var(tuple(blocks), layout, var.power)


def _cut_positions(var: Var, i: int, low: Fraction, high: Fraction) -> Var | None:
    """The part of a flattened axis that is whole positions; None for any other."""
    axis = var.layout[i]
    if len(axis) != 2 or not isinstance(axis[1], Fraction) or var.det:
        return None
    unit = axis[1]
    start, stop = low / unit, high / unit
    if start.denominator != 1 or stop.denominator != 1:
        return None
    count = int(stop - start)
    layout = (*var.layout[:i], (unit,) if count == 1 else (count, unit), *var.layout[i + 1 :])
    begin = tuple(int(start) if k == i else 0 for k in range(len(layout)))
    end = tuple(int(stop) if k == i else n for k, n in enumerate(var.shape))
    return map_positions(var, position("slice", start=begin, stop=end, stride=(1,) * len(layout)), layout)


def _cut_param(
    param: Param, starts: Sequence[tuple[int, int]], stops: Sequence[tuple[int, int]], strides: tuple[int, ...]
) -> Param:
    region = list(param.region)
    for axis, start, stop, stride in zip(param.axes, starts, stops, strides, strict=True):
        if axis is None:
            continue
        if stride != 1:
            raise Refusal(
                f"it takes every {stride}-th entry of the weight {param.name!r}", "slice weights without strides"
            )
        at = region[axis][0]
        low, high = (_relative(p) if param.widths[axis] is not None else Fraction(same_place(p)) for p in (start, stop))
        region[axis] = (at + low, at + high)
    return replace(param, region=tuple(region))


def dynamic_slice(eqn: Equation, x: Value, *indices: Value) -> Value:
    """A slice whose start is known by now."""
    if not all(isinstance(i, Known) for i in indices):
        raise Refusal("it slices at a place that depends on the input", "use indexing with an array (a gather) instead")
    sizes = eqn.pairs("slice_sizes")
    # a slice that would stick out is moved back inside
    inside = lambda i, k, own, size: min(max(int(i.values[k]), 0), own[k] - size[k])
    starts = [
        (inside(i, 0, own, size), inside(i, 1, own, size))
        for i, own, size in zip(indices, whole(x), sizes, strict=True)
    ]
    return cut(x, starts, [(a + s, b + t) for (a, b), (s, t) in zip(starts, sizes, strict=True)], (1,) * len(sizes))


def take_step(x: Value, t: int) -> Value:
    """x[t] along the leading axis."""
    if isinstance(x, Known):
        return Known((x.values[0][t], x.values[1][t]))
    if isinstance(x, Param):
        sizes = [(1, 1) if a is None else x.sizes(a) for a in x.axes]
        if sum(w is not None for w in x.widths) == 2:
            part = _cut_param(
                x, [(t, t), *((0, 0) for _ in sizes[1:])], [(t + 1, t + 1), *sizes[1:]], (1,) * len(sizes)
            )
            return replace(part, axes=part.axes[1:])
    var = to_var(x)
    shape = var.shape
    start, stop = (t, *(0 for _ in shape[1:])), (t + 1, *shape[1:])
    layout = ((), *var.layout[1:])
    row = map_positions(var, position("slice", start=start, stop=stop, stride=(1,) * len(shape)), layout)
    return map_positions(row, position("reshape", to=shape[1:]), layout[1:])


def split(eqn: Equation, x: Value) -> list[Value]:
    """Parts of given sizes along an axis."""
    return list(_parts(x, eqn.params[0]["axis"], eqn.pairs("sizes")))


def parts_along(x: Value, axis: int, count: int) -> list[Value]:
    """`count` equal parts along an axis of a variable, or of a parameter."""
    sizes = whole(x)[axis]
    if any(size % count for size in sizes):
        raise Refusal(f"it makes {count} equal parts of {sizes[0]} channels")
    return list(_parts(x, axis, [(sizes[0] // count, sizes[1] // count)] * count))


def weight_parts(x: Param, axis: int, count: int) -> list[Param]:
    """`count` equal parts of a weight along an axis, each still a weight, also where the weight has one width axis only."""
    sizes = whole(x)[axis]
    if any(size % count for size in sizes):
        raise Refusal(f"it makes {count} equal parts of {sizes[0]} channels")
    every, size = whole(x), (sizes[0] // count, sizes[1] // count)
    at = lambda k: [(k * size[0], k * size[1]) if i == axis else (0, 0) for i in range(len(every))]
    stop = lambda k: [((k + 1) * size[0], (k + 1) * size[1]) if i == axis else pair for i, pair in enumerate(every)]
    return [_cut_param(x, at(k), stop(k), (1,) * len(every)) for k in range(count)]


def whole(x: Value) -> list[tuple[int, int]]:
    """The sizes of the axes at the two widths."""
    if isinstance(x, Param):
        return [(1, 1) if a is None else x.sizes(a) for a in x.axes]
    if isinstance(x, Known):
        return list(zip(*x.shapes, strict=True))
    return [_sizes(a) for a in to_var(x).layout]


def _sizes(axis: Axis) -> tuple[int, int]:
    first, second = (math.prod(int(f * w) if isinstance(f, Fraction) else f for f in axis) for w in WIDTHS)
    return first, second


def _parts(x: Value, axis: int, sizes: Sequence[tuple[int, int]]) -> Iterator[Value]:
    every, at = whole(x), (0, 0)
    for size in sizes:
        end = (at[0] + size[0], at[1] + size[1])
        starts = [at if i == axis else (0, 0) for i in range(len(every))]
        stops = [end if i == axis else pair for i, pair in enumerate(every)]
        yield cut(x, starts, stops, (1,) * len(starts))
        at = end
