"""Readouts divided by n: averages over the width of a parameter times hidden coordinates, (1/n) sum_a v_a h_a.

As an output, or beside readouts of its own kind, v.h / sqrt(n) is Gaussian where v is independent of h. Divided by sqrt(n) once more
it is the Moment of Nonlin(v, h), a number in the limit: zero where v is independent of h, another one where h was made from v (Yang,
Tensor Programs III, section 2: v is a vector like every other). So it stands as a readout as long as it is only added to readouts,
moved, or scaled, for it may be multiplied by sqrt(n) again, and becomes the Moment where something else is done with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tensorprog.frontend.build import moment
from tensorprog.frontend.contract import Dims, products
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.values import Axis, Known, Param, Value, Var, unit_shape, width_axis
from tensorprog.ir import LinComb, MatMul, Node, PositionMap, Type, Weight, position

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["averaged", "averages_among"]

HALF = Fraction(1, 2)

# What moves entries, or sums them, whatever they are.
_MOVED = frozenset(
    {
        "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "slice", "dynamic_slice", "gather", "pad", "rev", "split",
        "unstack", "copy", "copy_p", "stop_gradient", "convert_element_type", "neg", "reduce_sum", "reduce_window_sum", "cumsum",
        "reduce_precision",
    }
)  # fmt: skip
_ADDED = frozenset(
    {
        "add", "add_any", "sub", "concatenate", "stack", "select_n", "scatter", "scatter-add", "scatter-sub", "dynamic_update_slice",
    }
)  # fmt: skip
_MULTIPLIED = frozenset({"mul", "div", "dot_general"})


def averages_among(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    """The operands of an equation, readouts divided by n among them as averages where it goes on with them as numbers."""
    divided = [isinstance(v, Var) and _is_divided(v) for v in values]
    if not any(divided) or _as_readouts(eqn.primitive, values, divided):
        return list(values)
    return [(averaged(v) or v) if is_divided else v for v, is_divided in zip(values, divided, strict=True)]  # type: ignore[arg-type]


def _is_divided(var: Var) -> bool:
    """Is it a readout divided by n, or by more?"""
    return var.random and var.power <= -HALF and len(var.blocks) == 1 and width_axis(var.layout) is None


def _as_readouts(primitive: str, values: Sequence[Value], divided: Sequence[bool]) -> bool:
    """Does the equation leave readouts readouts?"""
    if primitive in _MOVED:
        return True
    others = [v for v, is_divided in zip(values, divided, strict=True) if not is_divided]
    if primitive in _MULTIPLIED:
        numbers = all(isinstance(v, Known) or (isinstance(v, Var) and v.det) for v in others)
        return sum(divided) == 1 and numbers and (primitive != "div" or divided[0])
    if primitive not in _ADDED:
        return False
    powers = {v.power for v, is_divided in zip(values, divided, strict=True) if is_divided and isinstance(v, Var)}
    places = slice(1, None) if primitive == "select_n" else slice(None)  # what is chosen among, after the choice
    added = [v for v, is_divided in zip(values[places], divided[places], strict=True) if not is_divided]
    return len(powers) == 1 and all(_vanishes_beside(v, next(iter(powers))) for v in added)


def _vanishes_beside(value: Value, power: Fraction) -> bool:
    """Is it zeros, whole numbers that say where entries go, or a parameter or a number of the same scale as a readout's?"""
    if isinstance(value, Known):
        return all(v.dtype.kind in "iub" or not np.any(v) for v in value.values)
    if isinstance(value, Param):
        return value.power == power and all(w is None for w in value.widths)
    return isinstance(value, Var) and value.power == power


def averaged(out: Var) -> Var | None:
    """The average over the width that a readout divided by sqrt(n) is; None where it is another sum."""
    made = _averaged(out.node)
    return None if made is None else Var.of(made, out.layout, out.power + HALF)


def _averaged(node: Node) -> Node | None:
    match node:
        case MatMul(weight=Weight() as weight) if sum(w is not None for w in weight.widths) == 1:
            return _average_of(node, weight)
        case LinComb(terms=terms) if all(x.type.kind == "vector" for _, x in terms):
            made = [(a, _averaged(x)) for a, x in terms]
            parts = tuple((a, x) for a, x in made if x is not None)
            return LinComb(parts, source=node.source) if len(parts) == len(made) else None
        case PositionMap(op=op, args=args, result=result):
            first = _averaged(args[0])
            if first is None:
                return None
            return PositionMap(op, (first, *args[1:]), Type("scalar", result.shape), source=node.source)
    return None


def _average_of(node: MatMul, weight: Weight) -> Node:
    of_weight, of_x, of_out = node.letters
    layouts: dict[str, Axis] = {}
    for c, size, width in zip(of_weight, weight.shape, weight.widths, strict=True):
        layouts[c] = _axis(size, width)
    for c, size in zip(of_x, node.x.type.shape, strict=True):
        layouts.setdefault(c, _axis(size, None))
    w = Var.of(weight, tuple(layouts[c] for c in of_weight))
    x = Var.of(node.x, tuple(layouts[c] for c in of_x))
    shared = [c for c in of_weight if c in of_x]
    summed, batch = [c for c in shared if c not in of_out], [c for c in shared if c in of_out]
    places = lambda letters: (tuple(map(of_weight.index, letters)), tuple(map(of_x.index, letters)))
    dims = Dims(places(summed), places(batch))
    product, axes = products(w, x, dims)
    (at,) = [i for i in axes if any(isinstance(f, Fraction) for f in product.layout[i])]
    finite = tuple(f for f in product.layout[at] if isinstance(f, int))
    mean = moment(product, (*product.layout[:at], finite, *product.layout[at + 1 :]))
    kept = tuple(axis for i, axis in enumerate(mean.layout) if i not in axes)
    total = map_positions(mean, position("sum", axes=axes), kept).node
    made = batch + [of_weight[i] for i in dims.free(0, len(of_weight))] + [of_x[i] for i in dims.free(1, len(of_x))]
    if made == list(of_out):
        return total
    order = tuple(made.index(c) for c in of_out)
    shape = unit_shape(tuple(layouts[c] for c in of_out))
    return PositionMap(position("transpose", permutation=order), (total,), Type("scalar", shape), source=node.source)


def _axis(size: int, width: Fraction | None) -> Axis:
    finite: Axis = () if size == 1 else (size,)
    return finite if width is None else (*finite, width)
