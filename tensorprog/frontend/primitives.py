"""The table: JAX primitive -> instructions of the program. A primitive is one row of `RULES`.

A rule takes the equation at both widths and the values of its operands, and returns the value it makes (or a list).
It raises `Refusal` with the reason when the theorem, or this version, does not cover the use. Contractions stand in
`frontend.contract`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import sympy

from tensorprog.frontend import contract
from tensorprog.frontend.build import (
    Refusal,
    constant,
    lincomb,
    map_positions,
    nonlin,
    scaled,
    to_var,
)  # fmt: skip
from tensorprog.frontend.elementwise import ELEMENTWISE, expression
from tensorprog.frontend.values import (
    WIDTHS,
    Axis,
    Known,
    Layout,
    Param,
    Value,
    Var,
    aval,
    axis_of,
    unit_shape,
    width_axis,
)
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.interpret import Equation

__all__ = ["RULES", "elementwise", "stack_steps", "take_step"]

Rule = Callable[..., Value | list[Value]]


# ---------------------------------------------------------------------------------------- elementwise


def elementwise(eqn: Equation, *values: Value) -> Value:
    """Any row of the elementwise table: a LinComb where it is linear in hidden vectors, else a Nonlin."""
    name = eqn.primitive
    if (kept := _param_arithmetic(name, values)) is not None:
        return kept
    if name == "select_n" and isinstance(values[0], Known) and (chosen := _settled(values)) is not None:
        return chosen
    variables = [to_var(v) for v in values]
    random = [v for v in variables if v.random]
    if name == "convert_element_type":
        return _convert(eqn, variables[0])
    if random and name in ("add", "add_any", "sub", "neg"):
        signs = {"neg": [-1.0], "sub": [1.0, -1.0]}.get(name, [1.0, 1.0])
        return lincomb(list(zip(signs, variables, strict=True)))
    if len(random) == 1 and name == "mul":
        factor = variables[1 - variables.index(random[0])]
        return scaled(random[0], factor)
    if len(random) == 1 and name == "div" and variables[0] is random[0]:
        return scaled(random[0], _reciprocal(variables[1]))
    return _function(eqn, variables)


def _function(eqn: Equation, variables: Sequence[Var]) -> Var:
    power = _power(eqn, variables)
    xs: list[Var] = []
    thetas: list[Var] = []
    symbols: list[sympy.Expr] = []
    for var in variables:
        number = _exact(var)
        if number is not None:
            symbols.append(number)
        elif var.random:
            symbols.append(vector(len(xs)))
            xs.append(var)
        else:
            symbols.append(parameter(len(thetas)))
            thetas.append(var)
    expr = expression(eqn.primitive, eqn.params[0], symbols)
    if not xs and not thetas:
        return constant(np.float64(expr), (), power)
    return nonlin(Phi(sympy.sympify(expr), len(xs), len(thetas)), xs, thetas, power)


def _exact(var: Var) -> sympy.Expr | None:
    from tensorprog.frontend.build import _number
    from tensorprog.ir.phi import snap

    if var.random:
        return None
    number = _number(var) if var.node.type.shape == () or math.prod(var.node.type.shape) == 1 else None
    return None if number is None else snap(number)


def _reciprocal(var: Var) -> Var:
    number = _exact(var)
    if number is not None:
        if number == 0:
            raise Refusal("it divides by zero", "divide by a number that is not zero")
        return constant(np.float64(1.0) / np.float64(var.node.value.array().ravel()[0]), (), -var.power)  # type: ignore[attr-defined]
    return nonlin(Phi(1 / parameter(0), 0, 1), [], [var], -var.power)


_HOMOGENEOUS = {"max", "min", "abs", "add", "sub", "neg", "add_any", "convert_element_type"}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}


def _power(eqn: Equation, variables: Sequence[Var]) -> Fraction:
    """The power of the width of a function's value, from those of its arguments."""
    powers = [v.power for v in variables]
    name = eqn.primitive
    if not any(powers):
        return Fraction(0)
    match name:
        case "mul":
            return sum(powers, Fraction(0))
        case "div":
            return powers[0] - powers[1]
        case "sqrt":
            return powers[0] / 2
        case "rsqrt":
            return -powers[0] / 2
        case "square":
            return 2 * powers[0]
        case "integer_pow":
            return eqn.params[0]["y"] * powers[0]
        case "sign":
            return Fraction(0)
        case "select_n" if len(set(powers[1:])) == 1 and not powers[0]:
            return powers[1]
    relevant = {v.power for v in variables if _exact(v) != 0}
    if name in _HOMOGENEOUS and len(relevant) == 1:
        return relevant.pop()
    if name in _COMPARISONS and len(relevant) == 1:
        return Fraction(0)
    grown = next(p for p in powers if p)
    from tensorprog.frontend.heads import logits_refusal

    for var in variables:
        if (refusal := logits_refusal(var)) is not None:
            raise refusal
    raise Refusal(
        f"its argument scales like n^{grown} with the width n",
        "bring it to order one first, such as 1/sqrt(n) before a sum over n coordinates, or 1/n before a sum of products",
    )


def _convert(eqn: Equation, var: Var) -> Var:
    to = eqn.out_dtype
    was = np.dtype(aval(eqn.eqns[0].invars[0]).dtype)
    if (to.kind == "f" and was.kind == "f") or (var.det and to.kind == was.kind):
        return var
    if var.random and to.kind != "f":
        raise Refusal(f"it makes {to} of hidden values", "keep hidden vectors real")
    if var.det:
        from tensorprog.ir import ArrayOp

        kind = {"f": "real", "i": "integer", "u": "integer", "b": "boolean"}[to.kind]
        return Var.of(ArrayOp(f"to_{kind}", (), (var.node,), var.shape), var.layout, var.power)
    return _function(eqn, [var])


def _param_arithmetic(name: str, values: Sequence[Value]) -> Param | None:
    """A matrix scaled by a number stays a parameter."""
    params = [v for v in values if isinstance(v, Param) and sum(w is not None for w in v.widths) <= 2]
    if len(params) != 1:
        return None
    param = params[0]
    if name == "convert_element_type":
        return param
    if name == "neg":
        return _scale_param(param, constant(np.float64(-1.0), ()))
    others = [v for v in values if v is not param]
    if (
        name in ("mul", "div")
        and len(others) == 1
        and _is_number(others[0])
        and not (name == "div" and values[1] is param)
    ):
        factor = to_var(others[0])
        return _scale_param(param, _reciprocal(factor) if name == "div" else factor)
    return None


def _is_number(value: Value) -> bool:
    if isinstance(value, Known):
        return all(v.size == 1 or (v.size > 0 and np.all(v == v.ravel()[0])) for v in value.values)
    return isinstance(value, Var) and value.det and math.prod(value.shape) == 1


def _scale_param(param: Param, factor: Var) -> Param:
    if math.prod(factor.shape) == 1 and factor.layout:
        factor = map_positions(factor, position("reshape", to=()), ())
    if param.scale is None:
        return replace(param, scale=factor)
    product = nonlin(
        Phi(parameter(0) * parameter(1), 0, 2), [], [param.scale, factor], param.scale.power + factor.power
    )
    a, b = _exact(param.scale), _exact(factor)
    if a is not None and b is not None:
        product = constant(np.float64(a) * np.float64(b), (), param.scale.power + factor.power)
    return replace(param, scale=product)


def _settled(values: Sequence[Value]) -> Value | None:
    """select_n with a known predicate that is the same everywhere."""
    predicate = values[0]
    assert isinstance(predicate, Known)
    flat = [np.unique(v) for v in predicate.values]
    if all(len(f) == 1 and f[0] == flat[0][0] for f in flat):
        chosen = values[1 + int(flat[0][0])]
        if not (isinstance(chosen, Known) and chosen.scalar and not predicate.scalar):
            return chosen
    return None


def _select(eqn: Equation, predicate: Value, *cases: Value) -> Value:
    """Where the predicate is deterministic, hidden vectors are masked, linearly."""
    if isinstance(predicate, Known) and (chosen := _settled([predicate, *cases])) is not None:
        return chosen
    mask, *variables = map(to_var, (predicate, *cases))
    if mask.random or not any(v.random for v in variables) or len(variables) != 2:
        return _function(eqn, [mask, *variables])
    from tensorprog.ir import ArrayOp

    real = Var.of(ArrayOp("to_real", (), (mask.node,), mask.shape), mask.layout, mask.power)
    other = nonlin(Phi(1 - parameter(0), 0, 1), [], [real])
    return lincomb([(1.0, _masked(v, m)) for v, m in zip(variables, (other, real), strict=True)])


def _masked(var: Var, mask: Var) -> Var:
    if var.random:
        return scaled(var, mask)
    if _exact(var) == 0:
        return constant(np.float64(0.0), (), var.power)
    return nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [var, mask], var.power)


# ---------------------------------------------------------------------------------------- positions


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


def _transpose(eqn: Equation, x: Value) -> Value:
    order = tuple(eqn.params[0]["permutation"])
    if isinstance(x, Param):
        return replace(x, axes=tuple(x.axes[i] for i in order))
    var = to_var(x)
    return map_positions(var, position("transpose", permutation=order), tuple(var.layout[i] for i in order))


def _reshape(eqn: Equation, x: Value) -> Value:
    if eqn.primitive == "reshape" and eqn.params[0].get("dimensions") is not None:
        raise Refusal("a reshape in another than row-major order", "transpose first, then reshape")
    shapes = eqn.out_shapes()
    if isinstance(x, Param) and (kept := _reshape_param(x, shapes)) is not None:
        return kept
    var = to_var(x)
    from tensorprog.frontend.heads import split_heads

    if (split := split_heads(var, shapes)) is not None:
        return split
    layout = _regroup(var, shapes)
    return map_positions(var, position("reshape", to=unit_shape(layout)), layout)


def _reshape_param(param: Param, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Param | None:
    """Axes of size one come and go without committing a parameter."""
    rest = [(a, axis) for a, axis in zip(param.axes, param.layout, strict=True) if axis]
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
            elif isinstance(factor, Fraction) and var.det and need[0] == need[1] and sizes[0] % need[0] == 0:
                raise Refusal("it splits the width axis of a constant", "make the constant in the shape it is used in")
            else:
                raise Refusal(
                    "it splits or interleaves the width axis",
                    "keep the width as an axis of its own; reshape only the other axes",
                )
        layout.append(tuple(axis))
    return tuple(layout)


def _broadcast(eqn: Equation, x: Value) -> Value:
    shapes, places = eqn.out_shapes(), tuple(eqn.params[0]["broadcast_dimensions"])
    if isinstance(x, Param) and all(
        pair == (1, 1) or (i in places and axis_of(pair) == x.layout[places.index(i)])
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


def _slice(eqn: Equation, x: Value) -> Value:
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
            if start != (0, 0) or stop != tuple(int(size * w) for w in WIDTHS):
                var = _cut_width(var, i, start, stop, strides[i])
            layout[i] = var.layout[i]
            unit_start.append(0)
            unit_stop.append(var.shape[i])
        else:
            unit_start.append(start[0])
            unit_stop.append(stop[0])
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
            f"it cuts the width at {pair[0]} of {WIDTHS[0]} and {pair[1]} of {WIDTHS[1]}: not at a fixed fraction",
            "cut the width only into parts that grow with it; single coordinates have no limit of their own",
        )
    return place


def _cut_width(var: Var, i: int, start: tuple[int, int], stop: tuple[int, int], stride: int) -> Var:
    from tensorprog.frontend.build import take_block

    low, high = _relative(start), _relative(stop)
    if stride != 1 or len(var.layout[i]) != 1:
        raise Refusal("it cuts the width with a stride, or where positions are flattened into it")
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
        low, high = (_relative(p) if param.widths[axis] is not None else Fraction(p[0]) for p in (start, stop))
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


def stack_steps(steps: Sequence[Value], axis: int = 0) -> Value:
    """Stack values along a new axis."""
    if all(isinstance(s, Known) for s in steps):
        return Known(tuple(np.stack([s.values[i] for s in steps], axis) for i in (0, 1)))  # type: ignore[union-attr, arg-type]
    variables = []
    for step in map(to_var, steps):
        layout = (*step.layout[:axis], (), *step.layout[axis:])
        shape = (*step.shape[:axis], 1, *step.shape[axis:])
        variables.append(map_positions(step, position("reshape", to=shape), layout))
    return _join(variables, axis)


def _stack(eqn: Equation, *values: Value) -> Value:
    return stack_steps(values, eqn.params[0]["axis"])


def _tile(eqn: Equation, x: Value) -> Value:
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


def _pad(eqn: Equation, x: Value, fill: Value) -> Value:
    config = tuple(tuple(c) for c in eqn.params[0]["padding_config"])
    var, filler = to_var(x), to_var(fill)
    axis = width_axis(var.layout)
    if (axis is not None and config[axis] != (0, 0, 0)) or any(low < 0 or high < 0 for low, high, _ in config):
        raise Refusal("it pads the width, or by a negative amount", "pad positions only, and slice to crop")
    op = position("pad", config=config)
    shape = op.shape(var.shape)
    layout = tuple(
        a if config[i] == (0, 0, 0) else () if shape[i] == 1 else (shape[i],) for i, a in enumerate(var.layout)
    )
    padded = map_positions(var, op, layout)
    if _exact(filler) == 0:
        return padded
    inside = np.zeros(shape)
    inside[
        tuple(slice(low, low + (n - 1) * (i + 1) + 1, i + 1) for n, (low, _, i) in zip(var.shape, config, strict=True))
    ] = 1.0
    outside = nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [filler, constant(1.0 - inside, layout)], filler.power)
    return lincomb([(1.0, padded), (1.0, outside)])


def _rev(eqn: Equation, x: Value) -> Value:
    var, axes = to_var(x), tuple(eqn.params[0]["dimensions"])
    if width_axis(var.layout) in axes:
        raise Refusal(
            "it reverses the order of the hidden coordinates", "leave the width axis in its order: it has none"
        )
    return map_positions(var, position("rev", axes=axes), var.layout)


def _join(variables: Sequence[Var], axis: int) -> Var:
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


def _concatenate(eqn: Equation, *values: Value) -> Value:
    axis = eqn.params[0]["dimension"]
    variables = [to_var(v) for v in values]
    if not any(isinstance(f, Fraction) for v in variables for f in v.layout[axis]):
        return _join(variables, axis)
    if any(len(v.layout[axis]) != 1 or v.det for v in variables):
        raise Refusal(
            "it concatenates hidden vectors with deterministic values, or flattened positions, along the width",
            "concatenate hidden vectors with hidden vectors; pass finite inputs through a layer first",
        )
    if len({v.power for v in variables}) > 1:
        raise Refusal("it concatenates vectors that scale with different powers of the width")
    total = sum((v.layout[axis][0] for v in variables), Fraction(0))
    layout = tuple((total,) if i == axis else a for i, a in enumerate(variables[0].layout))
    return Var(tuple(b for v in variables for b in v.blocks), layout, variables[0].power)


def _split(eqn: Equation, x: Value) -> list[Value]:
    axis = eqn.params[0]["axis"]
    shapes = [aval(e.invars[0]).shape for e in eqn.eqns]
    at, parts = (0, 0), []
    for size in _pairs(eqn, "sizes"):
        end = (at[0] + size[0], at[1] + size[1])
        starts = [at if i == axis else (0, 0) for i in range(len(shapes[0]))]
        stops = [end if i == axis else pair for i, pair in enumerate(zip(*shapes, strict=True))]
        parts.append(cut(x, starts, stops, (1,) * len(starts)))
        at = end
    return parts


def _dynamic_slice(eqn: Equation, x: Value, *indices: Value) -> Value:
    if not all(isinstance(i, Known) for i in indices):
        raise Refusal("it slices at a place that depends on the input", "use indexing with an array (a gather) instead")
    sizes = _pairs(eqn, "slice_sizes")
    starts = [(int(i.values[0]), int(i.values[1])) for i in indices]  # type: ignore[union-attr]
    return cut(x, starts, [(a + s, b + t) for (a, b), (s, t) in zip(starts, sizes, strict=True)], (1,) * len(sizes))


def _gather(eqn: Equation, x: Value, indices: Value) -> Value:
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
    return map_positions(var, op, layout, where.node)


# ---------------------------------------------------------------------------------------- reductions


def _reduce_sum(eqn: Equation, x: Value) -> Value:
    return contract.sum_over(to_var(x), tuple(eqn.params[0]["axes"]))


def _reduce_extremum(function: Callable[..., sympy.Expr]) -> Rule:
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


def _window_sum(eqn: Equation, x: Value) -> Value:
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


def _window_max(eqn: Equation, x: Value) -> Value:
    p, var = eqn.params[0], to_var(x)
    window, strides, padding = p["window_dimensions"], p["window_strides"], [tuple(q) for q in p["padding"]]
    axes = [i for i, k in enumerate(window) if k != 1 or strides[i] != 1]
    if width_axis(var.layout) in axes:
        raise Refusal("its window reaches over the width", "pool over positions only")
    if any(q != (0, 0) for q in padding) or any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"])):
        raise Refusal(
            "max pooling with padding or dilation", "use VALID padding for max pooling, or pad with jnp.pad first"
        )
    pick = {"axes": tuple(axes), "window": tuple(window[i] for i in axes), "strides": tuple(strides[i] for i in axes)}
    op = position(
        "patches", **pick, padding=((0, 0),) * len(axes), dilation=(1,) * len(axes), base_dilation=(1,) * len(axes)
    )
    shape = op.shape(var.shape)
    layout = tuple(
        var.layout[i] if i < len(var.layout) and i not in axes else () if n == 1 else (n,) for i, n in enumerate(shape)
    )
    patches = map_positions(var, op, layout)
    for axis in range(len(shape) - 1, len(var.layout) - 1, -1):
        patches = _extremum(sympy.Max, patches, axis)
    return patches


def _cumsum(eqn: Equation, x: Value) -> Value:
    var, axis = to_var(x), eqn.params[0]["axis"]
    if width_axis(var.layout) == axis:
        raise Refusal("a running sum over the width", "run sums over positions only")
    return map_positions(var, position("cumsum", axis=axis, reverse=eqn.params[0]["reverse"]), var.layout)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "select_n": _select,
    "copy": lambda eqn, x: x,
    "copy_p": lambda eqn, x: x,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "rev": _rev,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "tile": _tile,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_extremum(sympy.Max),
    "reduce_min": _reduce_extremum(sympy.Min),
    "reduce_window_sum": _window_sum,
    "reduce_window_max": _window_max,
    "cumsum": _cumsum,
    "dot_general": contract.dot_general,
    "conv_general_dilated": contract.convolution,
}
