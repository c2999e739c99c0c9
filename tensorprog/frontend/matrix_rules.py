"""The table for matrix expressions (`frontend.matrices`): JAX primitive -> what it makes of sums of products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorprog.frontend.arithmetic import reciprocal
from tensorprog.frontend.build import constant, to_var
from tensorprog.frontend.contract import Dims, dims_of, in_numbers
from tensorprog.frontend.convolution import convolution
from tensorprog.frontend.matrices import expression, is_wide, joined, narrowed, part_of, summed, widths_of
from tensorprog.frontend.primitives import kept_parameter, stop_gradient
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import (
    WIDTHS,
    Axis,
    Known,
    Layout,
    Matrices,
    Param,
    Squares,
    Term,
    Value,
    Var,
    axis_of,
    kind_of,
    layout_of,
)

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["matrix_rule", "step_of"]


def matrix_rule(eqn: Equation, values: Sequence[Value]) -> Value | None:
    """What an equation makes as a matrix expression; None where it is none, and the usual rules hold."""
    if any(isinstance(v, Squares) for v in values):
        return None
    given = any(isinstance(v, Matrices) or is_wide(v) for v in values)
    if not given and all(isinstance(v, Known) or (isinstance(v, Var) and v.det) for v in values):
        return None
    rule = _RULES.get(eqn.primitive)
    if rule is None or not (given or _starts(eqn, values)):
        return None
    made = rule(eqn, *values)
    return narrowed(made) if isinstance(made, Matrices) and eqn.primitive == "dot_general" else made


def _starts(eqn: Equation, values: Sequence[Value]) -> bool:
    """Does the equation make a matrix expression of what is none?"""
    of_matrix = any(isinstance(v, Param) and widths_of(v.layout) > 1 for v in values)
    if eqn.primitive in ("rev", "gather", "reduce_sum"):
        return of_matrix
    try:
        wide = widths_of(layout_of(eqn.out_shapes())) > 1
    except ValueError:
        return False
    if eqn.primitive in ("stack", "concatenate"):
        return of_matrix
    return wide and not kept_parameter(eqn, values)


def _dot(eqn: Equation, x: Value, y: Value) -> Matrices:
    x, y = in_numbers(eqn, (x, y))
    return _product(expression(x), expression(y), dims_of(eqn))


def _product(x: Matrices, y: Matrices, dims: Dims) -> Matrices:
    free = dims.free(0, len(x.layout)), dims.free(1, len(y.layout))
    pairs = [*zip(*dims.contract, strict=True), *zip(*dims.batch, strict=True)]
    pick = lambda one, other: tuple(
        [one[i] or other[j] for i, j in zip(*dims.batch, strict=True)] + [one[i] for i in free[0]] + [other[j] for j in free[1]]
    )  # fmt: skip
    layout = pick(x.layout, y.layout)
    whole = (*layout, *(x.layout[i] or y.layout[j] for i, j in zip(*dims.contract, strict=True)))
    terms = []
    for one in x.terms:
        for other in y.terms:
            a, b = joined(one, other, pairs)
            axes = (*pick(a.axes, b.axes), *(a.axes[i] for i in dims.contract[0]))
            terms.append(summed(Term((*a.factors, *b.factors), axes), range(len(layout), len(axes)), whole))
    return Matrices(tuple(terms), layout)


def _mul(eqn: Equation, x: Value, y: Value) -> Matrices:
    """Entry by entry, with copies along axes of size one."""
    one, other, layout = _alike(expression(x), expression(y))
    shared = [(i, i) for i in range(len(layout)) if one.layout[i] and other.layout[i]]
    terms = []
    for s in one.terms:
        for t in other.terms:
            a, b = joined(s, t, shared)
            axes = tuple(p if one.layout[i] else q for i, (p, q) in enumerate(zip(a.axes, b.axes, strict=True)))
            terms.append(Term((*a.factors, *b.factors), axes))
    return Matrices(tuple(terms), layout)


def _alike(x: Matrices, y: Matrices) -> tuple[Matrices, Matrices, Layout]:
    """Two arrays that are combined entry by entry, and the layout of the result: a number is the same for all entries."""
    rank = max(len(x.layout), len(y.layout))
    x, y = (m if len(m.layout) == rank else _everywhere(m, rank) for m in (x, y))
    return x, y, tuple(a or b for a, b in zip(x.layout, y.layout, strict=True))


def _everywhere(value: Matrices, rank: int) -> Matrices:
    """A number as an array."""
    assert not value.layout
    terms = tuple(replace(t, axes=tuple(range(t.fresh, t.fresh + rank))) for t in value.terms)
    return Matrices(terms, ((),) * rank)


def _div(eqn: Equation, x: Value, y: Value) -> Matrices:
    y = narrowed(y)
    if isinstance(y, (Matrices, Squares)) or is_wide(y):
        raise Refusal("it divides by a matrix, entry by entry", "divide by a number or by a vector")
    below = to_var(y)
    if below.random:
        raise Refusal("it divides a matrix by a hidden vector", "multiply by its reciprocal, 1 / h")
    return _mul(eqn, x, reciprocal(below))


def _sum(sign: float) -> Callable[..., Matrices]:
    def rule(eqn: Equation, x: Value, y: Value) -> Matrices:
        one, other, layout = _alike(expression(x), expression(y))
        other = _negative(other) if sign < 0 else other
        return Matrices((*one.terms, *other.terms), layout)

    return rule


def _negative(value: Matrices) -> Matrices:
    minus = (constant(np.float64(-1.0), ()), ())
    return replace(value, terms=tuple(replace(t, factors=(*t.factors, minus)) for t in value.terms))


def _neg(eqn: Equation, x: Value) -> Matrices:
    return _negative(expression(x))


def _select(eqn: Equation, mask: Value, *cases: Value) -> Matrices:
    """Of each case the entries that a known mask takes of it."""
    if not isinstance(mask, Known):
        raise Refusal("it chooses entries of a matrix by an array that is not constant", "choose among hidden vectors")
    add, total = _sum(1.0), Matrices((), layout_of(eqn.out_shapes()))
    for i, case in enumerate(cases):
        taken = Known((np.equal(mask.values[0], i) * 1.0, np.equal(mask.values[1], i) * 1.0))
        total = add(eqn, total, _mul(eqn, taken, case))
    return total


def _transpose(eqn: Equation, x: Value) -> Matrices:
    return _in_order(expression(x), eqn.params[0]["permutation"])


def _in_order(m: Matrices, order: Sequence[int]) -> Matrices:
    terms = tuple(replace(t, axes=tuple(t.axes[i] for i in order)) for t in m.terms)
    return Matrices(terms, tuple(m.layout[i] for i in order))


def _broadcast(eqn: Equation, x: Value) -> Matrices:
    m, places = expression(x), eqn.params[0]["broadcast_dimensions"]
    target = layout_of(eqn.out_shapes())
    layout = tuple((m.layout[places.index(i)] or axis) if i in places else axis for i, axis in enumerate(target))
    axes = lambda t: tuple(t.axes[places.index(i)] if i in places else t.fresh + i for i in range(len(layout)))
    return Matrices(tuple(replace(t, axes=axes(t)) for t in m.terms), layout)


def _reshape(eqn: Equation, x: Value) -> Matrices:
    """Axes of size one come and go."""
    m, shapes = expression(x), eqn.out_shapes()
    rest = [i for i, axis in enumerate(m.layout) if axis]
    sizes = lambda axis: tuple(math.prod(int(f * w) if isinstance(f, Fraction) else f for f in axis) for w in WIDTHS)
    layout: list[Axis] = []
    places: list[int | None] = []
    for pair in zip(*shapes, strict=True):
        if pair == (1, 1):
            layout.append(())
            places.append(None)
        elif rest and sizes(m.layout[rest[0]]) == pair:
            layout.append(m.layout[rest[0]])
            places.append(rest.pop(0))
        else:
            raise Refusal(
                "it reshapes a matrix expression", "reshape weights where they are made, or vectors after the product"
            )
    axes = lambda t: tuple(t.fresh + k if i is None else t.axes[i] for k, i in enumerate(places))
    return Matrices(tuple(replace(t, axes=axes(t)) for t in m.terms), tuple(layout))


def _reduce_sum(eqn: Equation, x: Value) -> Matrices:
    m, over = expression(x), tuple(eqn.params[0]["axes"])
    layout = tuple(axis for i, axis in enumerate(m.layout) if i not in over)
    return Matrices(tuple(summed(t, over, m.layout) for t in m.terms), layout)


def _chosen(m: Matrices, axis: int, places: Sequence[int]) -> Matrices:
    """Entries along a finite axis, one for each of these places."""
    if any(isinstance(f, Fraction) for f in m.layout[axis]):
        raise Refusal(
            "it cuts or reorders a matrix expression along the width",
            "cut the weights it is made of, or the vector after the product",
        )
    size = _size(m, axis)
    if list(places) == list(range(size)):
        return m
    matrix = np.zeros((len(places), size))
    matrix[np.arange(len(places)), list(places)] = 1.0
    return _mapped(m, axis, matrix)


def _mapped(m: Matrices, axis: int, matrix: np.ndarray) -> Matrices:
    """A known matrix times a finite axis."""
    made = _product(expression(Known((matrix, matrix))), m, Dims(((1,), (axis,)), ((), ())))
    return _in_order(made, [*range(1, axis + 1), 0, *range(axis + 1, len(m.layout))])


def _size(m: Matrices, axis: int) -> int:
    return math.prod(f for f in m.layout[axis] if isinstance(f, int))


def _rev(eqn: Equation, x: Value) -> Matrices:
    m = expression(x)
    for axis in eqn.params[0]["dimensions"]:
        m = _chosen(m, axis, range(_size(m, axis) - 1, -1, -1))
    return m


def _slice(eqn: Equation, x: Value) -> Matrices:
    m, p = expression(x), eqn.params
    strides = p[0]["strides"] or (1,) * len(m.layout)
    for axis, step in enumerate(strides):
        ends = [(q["start_indices"][axis], q["limit_indices"][axis]) for q in p]
        if ends[0] != ends[1]:
            if any(start for start, _ in ends) or step != 1 or axis_of((ends[0][1], ends[1][1])) != m.layout[axis]:
                _chosen(m, axis, ())
            continue
        m = _chosen(m, axis, range(*ends[0], step))
    return m


def _gather(eqn: Equation, x: Value, indices: Value) -> Value:
    """Entries along one finite axis, at constant places."""
    numbers = eqn.params[0]["dimension_numbers"]
    axes, m = tuple(numbers.start_index_map), expression(x)
    along = len(axes) == 1 and tuple(numbers.collapsed_slice_dims) == axes and not numbers.operand_batching_dims
    in_place = along and tuple(numbers.offset_dims) == tuple(i for i in range(len(m.layout)) if i != axes[0])
    if not (in_place and isinstance(indices, Known) and indices.values[0].ndim == 2):
        raise Refusal(
            "it takes entries of a weight other than along one axis of positions",
            "index one axis at a time, by constants",
        )
    places = [int(i) for i in indices.values[0][:, 0]]
    if any(not 0 <= i < _size(m, axes[0]) for i in places):
        raise Refusal("it takes entries of a weight out of bounds", "index within the weight")
    return _chosen(m, axes[0], places)


def _stack(eqn: Equation, *values: Value) -> Matrices:
    axis = eqn.params[0]["axis"]
    return _end_to_end([_inserted(expression(v), axis) for v in values], axis)


def _inserted(m: Matrices, axis: int) -> Matrices:
    """With a new axis of size one."""
    terms = tuple(replace(t, axes=(*t.axes[:axis], t.fresh, *t.axes[axis:])) for t in m.terms)
    return Matrices(terms, (*m.layout[:axis], (), *m.layout[axis:]))


def _concatenate(eqn: Equation, *values: Value) -> Matrices:
    axis = eqn.params[0]["dimension"]
    parts = [expression(v) for v in values]
    if any(isinstance(f, Fraction) for m in parts for f in m.layout[axis]):
        raise Refusal(
            "it puts weights beside each other along the width",
            "multiply by each of them, and concatenate the products; or make one weight of the whole width",
        )
    return _end_to_end(parts, axis)


def _end_to_end(parts: Sequence[Matrices], axis: int) -> Matrices:
    """Along a finite axis: each part at its places, zero elsewhere."""
    sizes = [_size(m, axis) for m in parts]
    terms: list[Term] = []
    total, at, layout = sum(sizes), 0, parts[0].layout
    for m, size in zip(parts, sizes, strict=True):
        matrix = np.zeros((total, size))
        matrix[at + np.arange(size), np.arange(size)] = 1.0
        at += size
        terms += _mapped(m, axis, matrix).terms
    return Matrices(tuple(terms), (*layout[:axis], (total,) if total > 1 else (), *layout[axis + 1 :]))


def step_of(m: Matrices, t: int) -> Value:
    """m[t] along the leading axis."""
    terms = []
    for term in m.terms:
        factors = tuple(part_of(factor, term.axes[0], t) for factor in term.factors)
        numbers = [v.values[0] for v, labels in factors if isinstance(v, Known) and not labels]
        if all(numbers):
            left = tuple(f for f in factors if not (isinstance(f[0], Known) and not f[1] and f[0].values[0] == 1))
            terms.append(Term(left, term.axes[1:]))
    made = Matrices(tuple(terms), m.layout[1:])
    alone = len(terms) == 1 and len(terms[0].factors) == 1 and terms[0].factors[0][1] == terms[0].axes
    return terms[0].factors[0][0] if alone else narrowed(made)


def _stop(eqn: Equation, x: Value) -> Matrices:
    m = expression(x)
    stopped: Callable[[Term], Any] = lambda term: tuple((stop_gradient(eqn, v), labels) for v, labels in term.factors)
    return replace(m, terms=tuple(replace(t, factors=stopped(t)) for t in m.terms))


def _convert(eqn: Equation, x: Value) -> Value:
    if kind_of(eqn.eqns[0].invars[0]) == "b" and isinstance(x, Known):
        return x
    if kind_of(eqn.eqns[0].outvars[0]) != "f":
        raise Refusal("it rounds the entries of a matrix", "round hidden vectors")
    return expression(x)


def _convolution(eqn: Equation, x: Value, kernel: Value) -> Value:
    multiply = lambda kernel, x, dims: narrowed(_product(expression(x), expression(kernel), dims.swapped()))
    return convolution(eqn, narrowed(x), expression(kernel), multiply)


_RULES: dict[str, Callable[..., Any]] = {
    "add": _sum(1.0), "add_any": _sum(1.0), "sub": _sum(-1.0), "neg": _neg, "mul": _mul, "div": _div,
    "dot_general": _dot, "select_n": _select, "transpose": _transpose, "broadcast_in_dim": _broadcast,
    "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape, "reduce_sum": _reduce_sum,
    "rev": _rev, "slice": _slice, "gather": _gather, "stack": _stack, "concatenate": _concatenate,
    "conv_general_dilated": _convolution, "stop_gradient": _stop, "convert_element_type": _convert,
    "copy": lambda eqn, x: x, "copy_p": lambda eqn, x: x,
}  # fmt: skip
