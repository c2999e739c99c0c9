"""Primitives that move, select and join positions, or cut and join the width: the rows of `frontend.primitives` for
them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import sympy

from tensorprog.frontend.blocks import take_block
from tensorprog.frontend.build import (
    constant,
    lincomb,
    map_positions,
    nonlin,
    to_var,
    unflattened,
)
from tensorprog.frontend.division import finer_origins
from tensorprog.frontend.refusals import Refusal, same_place
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
from tensorprog.ir.phi import parameter, snap, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = [
    "beside", "broadcast", "concatenate", "cut", "dynamic_slice", "gather", "join", "parts_along", "reshape", "rev", "slice_",
    "split", "stack", "stack_steps", "take_step", "tile", "transpose", "whole",
]  # fmt: skip


_REAL = np.dtype(float)


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


def _pairs(eqn: Equation, key: str) -> list[tuple[int, int]]:
    return list(zip(eqn.params[0][key], eqn.params[1][key], strict=True))


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
    sizes = [_sizes(a) for a in var.layout]
    before = [math.prod(s[i] for s in sizes[:axis]) for i in (0, 1)]
    whole, at = sizes[axis], [1, 1]
    for target in zip(*shapes, strict=True):
        if at == before and target[0] == target[1] and target[0] > 1 and all(w % target[0] == 0 for w in whole):
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


def slice_(eqn: Equation, x: Value) -> Value:
    """Positions, and blocks of the width, from a start to a stop."""
    starts, stops = _pairs(eqn, "start_indices"), _pairs(eqn, "limit_indices")
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
    var = var if var.det else _beside(var, i, "it cuts the width")
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


def stack_steps(steps: Sequence[Value], axis: int = 0, dtype: np.dtype = _REAL) -> Value:
    """Values along a new axis. dtype: what they hold."""
    if all(isinstance(s, Known) for s in steps):
        return Known(tuple(np.stack([s.values[i] for s in steps], axis) for i in (0, 1)))  # type: ignore[union-attr, arg-type]
    variables = []
    for step in map(to_var, steps):
        layout = (*step.layout[:axis], (), *step.layout[axis:])
        shape = (*step.shape[:axis], 1, *step.shape[axis:])
        variables.append(map_positions(step, position("reshape", to=shape), layout))
    return _with_truths(variables, lambda numbers: join(numbers, axis), dtype)


def stack(eqn: Equation, *values: Value) -> Value:
    """Values along a new axis."""
    return stack_steps(values, eqn.params[0]["axis"], eqn.out_dtype)


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


def join(variables: Sequence[Var], axis: int) -> Var:
    """Concatenate along a finite axis: a sum of zero-padded parts."""
    total = sum(v.shape[axis] for v in variables)
    terms, at = [], 0
    for var in variables:
        size = var.shape[axis]
        config = tuple((at, total - at - size, 0) if i == axis else (0, 0, 0) for i in range(len(var.shape)))
        layout = tuple((() if total == 1 else (total,)) if i == axis else a for i, a in enumerate(var.layout))
        wide = next((v.layout for v in variables if v.random), var.layout)
        layout = tuple(a if i == axis or var.random else wide[i] for i, a in enumerate(layout))
        terms.append((1.0, map_positions(var, position("pad", config=config), layout)))
        at += size
    return lincomb(terms)


def concatenate(eqn: Equation, *values: Value) -> Value:
    """One after the other, along positions or along the width."""
    axis = eqn.params[0]["dimension"]
    values = tuple(v for v in values if not (isinstance(v, Known) and not v.values[0].size)) or values[:1]
    variables = [to_var(v) for v in values]
    if any(isinstance(f, Fraction) for v in variables for f in v.layout[axis]):
        return beside(variables, axis)
    return _with_truths(variables, lambda numbers: join(numbers, axis), eqn.out_dtype)


def _with_truths(variables: Sequence[Var], joined: Callable[[Sequence[Var]], Var], dtype: np.dtype) -> Var:
    """What is joined by adding up: of hidden truth values as numbers, which are truth values again."""
    if dtype.kind != "b" or not any(v.random for v in variables):
        return joined(variables)
    number = sympy.Piecewise((1, vector(0)), (0, True))
    made = joined([nonlin(Phi(number, 1), [v], []) if v.random else v for v in variables])
    return nonlin(Phi(sympy.Ne(vector(0), 0), 1), [made], [])


def beside(variables: Sequence[Var], axis: int) -> Var:
    """Hidden vectors one after the other along the width."""
    if any(v.det for v in variables):
        raise Refusal(
            "it concatenates hidden vectors with deterministic values along the width",
            "concatenate hidden vectors with hidden vectors; pass finite inputs through a layer first",
        )
    variables = [_beside(v, axis, "it concatenates along the width") for v in variables]
    if len({v.power for v in variables}) > 1:
        raise Refusal("it concatenates vectors that scale with different powers of the width")
    total = sum((v.layout[axis][0] for v in variables), Fraction(0))
    layout = tuple((total,) if i == axis else a for i, a in enumerate(variables[0].layout))
    return Var(tuple(b for v in variables for b in v.blocks), layout, variables[0].power)


def _beside(var: Var, axis: int, what: str) -> Var:
    """Positions that are flattened into the width as vectors beside each other."""
    made = unflattened(var, axis)
    if made is None:
        raise Refusal(
            f"{what} where positions are flattened into it behind the coordinates",
            "flatten (positions, n), by transposing first",
        )
    return made


def split(eqn: Equation, x: Value) -> list[Value]:
    """Parts of given sizes along an axis."""
    return list(_parts(x, eqn.params[0]["axis"], _pairs(eqn, "sizes")))


def parts_along(x: Value, axis: int, count: int) -> list[Value]:
    """`count` equal parts along an axis of a variable, or of a parameter."""
    sizes = whole(x)[axis]
    if any(size % count for size in sizes):
        raise Refusal(f"it makes {count} equal parts of {sizes[0]} channels")
    return list(_parts(x, axis, [(sizes[0] // count, sizes[1] // count)] * count))


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


def dynamic_slice(eqn: Equation, x: Value, *indices: Value) -> Value:
    """A slice whose start is known by now."""
    if not all(isinstance(i, Known) for i in indices):
        raise Refusal("it slices at a place that depends on the input", "use indexing with an array (a gather) instead")
    sizes = _pairs(eqn, "slice_sizes")
    # a slice that would stick out is moved back inside
    inside = lambda i, k, own, size: min(max(int(i.values[k]), 0), own[k] - size[k])
    starts = [
        (inside(i, 0, own, size), inside(i, 1, own, size))
        for i, own, size in zip(indices, whole(x), sizes, strict=True)
    ]
    return cut(x, starts, [(a + s, b + t) for (a, b), (s, t) in zip(starts, sizes, strict=True)], (1,) * len(sizes))


def _only_window(op: Position, var: Var, indices: np.ndarray) -> tuple[int, ...] | None:
    """Where the one window starts that a gather takes, inside the array; None where it takes several, or one that sticks out."""
    if indices.ndim != 1:
        return None
    start = [0] * len(var.shape)
    for axis, place in zip(op.kw["start_index_map"], indices, strict=True):
        start[axis] = int(place)
    inside = all(0 <= a <= n - k for a, n, k in zip(start, var.shape, op.kw["slice_sizes"], strict=True))
    return tuple(start) if inside else None


def gather(eqn: Equation, x: Value, indices: Value) -> Value:
    """Positions by index."""
    var, where = to_var(x), to_var(indices)
    if where.random:
        raise Refusal("its indices are hidden values", "index with constants or with the input")
    p = eqn.params[0]
    numbers, axis = p["dimension_numbers"], width_axis(var.layout)
    sizes = tuple(at_unit(var, pair) for pair in _pairs(eqn, "slice_sizes"))
    if axis is not None and (sizes[axis] != var.shape[axis] or axis in numbers.start_index_map):
        raise Refusal("it indexes the width", "single hidden coordinates have no limit; index positions only")
    op = position(
        "gather", slice_sizes=sizes, mode=p["mode"].name, rank=len(eqn.out_shapes()[0]),
        offset_dims=tuple(numbers.offset_dims), collapsed_slice_dims=tuple(numbers.collapsed_slice_dims),
        start_index_map=tuple(numbers.start_index_map), operand_batching_dims=tuple(numbers.operand_batching_dims),
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
