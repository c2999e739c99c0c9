"""Contractions: products with weights (MatMul), linear maps of positions, and means over the width (Moment).

Which of them a `dot_general` is, its operands decide: a parameter times anything is a `MatMul`; a
hidden vector times a deterministic array is a map of positions; two hidden vectors contracted over the width are n
times a `Moment`, which concentrates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import sympy

from tensorprog.frontend.agree import agreeing, alike, among_zeros, at_places, check_symmetry, in_whole, places_of
from tensorprog.frontend.build import constant, lincomb, moment, nonlin, scaled, to_var, weight_node
from tensorprog.frontend.division import Redo
from tensorprog.frontend.entrywise import readout_of
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import (
    Axis,
    Layout,
    Param,
    Value,
    Var,
    aval,
    unit_shape,
    width_axis,
)
from tensorprog.ir import MatMul, Node, Phi, Weight, position
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = [
    "Dims",
    "dims_of",
    "dot_general",
    "dotted",
    "in_numbers",
    "product",
    "products",
    "spread",
    "sum_of_squares",
    "sum_over",
    "times_weight",
]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Dims:
    """A dot_general: which axes of the two operands are summed, which run together, which are free."""

    contract: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]

    def swapped(self) -> Dims:
        return Dims(self.contract[::-1], self.batch[::-1])

    def free(self, side: int, rank: int) -> list[int]:
        return [i for i in range(rank) if i not in self.contract[side] and i not in self.batch[side]]


def dims_of(eqn: Equation) -> Dims:
    """Which axes a dot_general multiplies."""
    contract, batch = eqn.params[0]["dimension_numbers"]
    return Dims(tuple(map(tuple, contract)), tuple(map(tuple, batch)))  # type: ignore[arg-type]


def in_numbers(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    """The operands, hidden truth values among them as the numbers 0 and 1, which JAX multiplies as they are."""
    hidden = [
        isinstance(v, Var) and v.random and aval(atom).dtype == bool
        for v, atom in zip(values, eqn.eqns[0].invars, strict=True)
    ]
    number = lambda v: nonlin(Phi(sympy.Piecewise((1, vector(0)), (0, True)), 1), [v], [], v.power)
    return [number(v) if is_hidden else v for v, is_hidden in zip(values, hidden, strict=True)]


def dot_general(eqn: Equation, lhs: Value, rhs: Value) -> Value:
    """A product of two arrays, read as what its operands make it."""
    lhs, rhs = in_numbers(eqn, (lhs, rhs))
    return dotted(lhs, rhs, dims_of(eqn))


def dotted(lhs: Value, rhs: Value, dims: Dims) -> Value:
    """A product of two values."""
    params = [isinstance(v, Param) for v in (lhs, rhs)]
    if all(params):
        matrices = [sum(w is not None for w in v.widths) == 2 for v in (lhs, rhs)]  # type: ignore[union-attr]
        if matrices == [True, True]:
            raise Refusal(
                "it multiplies two weight matrices with each other, and sums over both width axes of one",
                "multiply vectors by one weight after the other: W1 @ (W2 @ x)",
            )
        params = matrices if any(matrices) else [True, False]
        lhs, rhs = (v if keep else to_var(v) for v, keep in zip((lhs, rhs), params, strict=True))
    if params[0]:
        return times_weight(lhs, to_var(rhs), dims, weight_first=True)  # type: ignore[arg-type]
    if params[1]:
        return times_weight(rhs, to_var(lhs), dims.swapped(), weight_first=False)  # type: ignore[arg-type]
    x, y = to_var(lhs), to_var(rhs)
    if (x.random and y.random) or any(width_axis(v.layout) in c for v, c in zip((x, y), dims.contract, strict=True)):
        return _sum_of_products(x, y, dims)
    return _linear(x, y, dims)


def _linear(x: Var, y: Var, dims: Dims) -> Var:
    """A hidden vector (or a deterministic array) times a deterministic array: a map of positions."""
    if y.random:
        return _transposed(_linear(y, x, dims.swapped()), x, y, dims)
    one_place = x.random and all(
        x.shape[i] == 1 for i in dims.contract[0]
    )  # a product entry by entry, which functions go on with
    if one_place or width_axis(y.layout) is not None:
        return _sum_of_products(x, y, dims)
    ranks = (len(x.layout), len(y.layout))
    free_x, free_y = dims.free(0, ranks[0]), dims.free(1, ranks[1])
    layout = tuple([x.layout[i] for i in dims.batch[0]] + [x.layout[i] for i in free_x] + [y.layout[i] for i in free_y])
    op = position("dot", contract=dims.contract, batch=dims.batch, ndim=ranks[1])
    out = map_positions(x, op, layout, y.node)
    return out.with_blocks([n for _, n in out.blocks], power=x.power + y.power)


def _transposed(out: Var, x: Var, y: Var, dims: Dims) -> Var:
    """Reorder (batch, free of y, free of x) to (batch, free of x, free of y)."""
    nb, nx, ny = len(dims.batch[0]), len(dims.free(0, len(x.layout))), len(dims.free(1, len(y.layout)))
    order = (*range(nb), *range(nb + ny, nb + ny + nx), *range(nb, nb + ny))
    return map_positions(out, position("transpose", permutation=order), tuple(out.layout[i] for i in order))


def _sum_of_products(x: Var, y: Var, dims: Dims) -> Var:
    product, axes = products(x, y, dims)
    return sum_over(product, axes)


def products(x: Var, y: Var, dims: Dims) -> tuple[Var, tuple[int, ...]]:
    """Both spread to all axes (batch, free, free, summed) and multiplied coordinate by coordinate; which axes are to be summed."""
    free = dims.free(0, len(x.layout)), dims.free(1, len(y.layout))
    nb, nx, ny, nc = len(dims.batch[0]), len(free[0]), len(free[1]), len(dims.contract[0])
    rank = nb + nx + ny + nc
    places_x = {
        **dict(zip(dims.batch[0], range(nb), strict=True)),
        **dict(zip(free[0], range(nb, nb + nx), strict=True)),
    }
    places_y = {
        **dict(zip(dims.batch[1], range(nb), strict=True)),
        **dict(zip(free[1], range(nb + nx, nb + nx + ny), strict=True)),
    }
    places_x |= dict(zip(dims.contract[0], range(rank - nc, rank), strict=True))
    places_y |= dict(zip(dims.contract[1], range(rank - nc, rank), strict=True))
    layout: list[tuple[int | Fraction, ...]] = [()] * rank
    for var, places in ((y, places_y), (x, places_x)):
        for i, place in places.items():
            layout[place] = var.layout[i] or layout[place]
    if sum(isinstance(f, Fraction) for axis in layout for f in axis) > 1:
        raise Refusal(
            "it makes an array with two width axes out of hidden vectors (an outer product over the width)",
            "contract the width, or let both factors share it",
        )
    both = [spread(v, p, tuple(layout)) for v, p in ((x, places_x), (y, places_y))]
    return product(*both), tuple(range(rank - nc, rank))


def spread(var: Var, places: dict[int, int], layout: Layout) -> Var:
    """The same over all axes of `layout`. places: where each of its own stands there."""
    order = sorted(places, key=places.__getitem__)
    moved = map_positions(var, position("transpose", permutation=tuple(order)), tuple(var.layout[i] for i in order))
    axes = tuple(sorted(places.values()))
    if var.random and width_axis(layout) is not None and width_axis(moved.layout) is None:
        raise Refusal(
            "it multiplies a hidden vector by an output or parameter of finite size, which stays random in the limit",
            "give the parameter a width axis, or freeze it to a constant",
        )
    return map_positions(moved, position("broadcast", to=unit_shape(layout), axes=axes), layout)


def product(x: Var, y: Var) -> Var:
    """Two variables multiplied coordinate by coordinate."""
    if x.random and y.random:
        return nonlin(Phi(vector(0) * vector(1), 2), [x, y], [], x.power + y.power)
    if x.random or y.random:
        return scaled(x, y) if x.random else scaled(y, x)
    return nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [x, y], x.power + y.power)


# ------------------------------------------------------------------------------------------ sums


def sum_over(var: Var, axes: tuple[int, ...]) -> Var:
    """A sum over positions is a map of positions; over the width it is n times a Moment, or a readout by a parameter."""
    axis = width_axis(var.layout)
    if axis is not None and axis in axes:
        finite = tuple(f for f in var.layout[axis] if isinstance(f, int))
        layout = (*var.layout[:axis], finite, *var.layout[axis + 1 :])
        if var.det:
            size = math.prod((f for f in var.layout[axis] if isinstance(f, Fraction)), start=Fraction(1))
            times = parameter(0) * sympy.Rational(size.numerator, size.denominator)
            counted = nonlin(Phi(times, 0, 1), [], [var])
            return sum_over(Var.of(counted.node, layout, var.power + 1), axes)
        readout = readout_of(var, axes)
        return sum_over(moment(var, layout), axes) if readout is None else readout
    layout = tuple(a for i, a in enumerate(var.layout) if i not in axes)
    return map_positions(var, position("sum", axes=axes), layout)


def sum_of_squares(param: Param, axes: tuple[int, ...]) -> Var:
    """sum_j W_ij^2 over a width axis: n times the variance, up to 1/sqrt(n), which has no part in the limit.

    Nor has its derivative, sum_j W_ij W'_ij, of relative size 1/sqrt(n): weight norm trains as the plain weight does.
    """
    summed = {a for i in axes if (a := param.axes[i]) is not None}
    widths = [w for a in summed if (w := param.widths[a]) is not None]
    if not widths:
        raise Refusal(
            f"it sums squares of the weight {param.name!r} over an axis that does not grow: such norms stay random",
            "take norms over the axis that the weight is summed over",
        )
    count = math.prod((Fraction(param.size(a)) for a in summed), start=Fraction(1))
    value = (param.mean**2 + param.std**2) * float(count)
    layout = tuple(axis for i, axis in enumerate(param.layout) if i not in axes)
    total = constant(np.full(unit_shape(layout), value), layout, 2 * param.power + len(widths))
    return total if param.scale is None else scaled_scalar(scaled_scalar(total, param.scale), param.scale)


def scaled_scalar(x: Var, factor: Var) -> Var:
    """A product of deterministic arrays."""
    return nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [x, factor], x.power + factor.power)


# ------------------------------------------------------------------------------------------ weights


def times_weight(param: Param, x: Var, dims: Dims, weight_first: bool) -> Value:
    """The product of a parameter and a variable. `dims` has the parameter first."""
    rank_w, rank_x = len(param.axes), len(x.layout)
    if param.per_input:
        return _swap_product(to_var(param), x, dims, weight_first)
    if param.symmetric and param.apart:
        return _as_sum(param, x, dims, weight_first)
    if x.random and width_axis(x.layout) is None:
        raise Refusal(
            f"it multiplies an output of finite size by the weight {param.name!r}: a finite bottleneck stays random in the limit",
            "keep hidden layers infinitely wide (features=None) and put the only finite layer at the end",
        )
    matrix = sum(w is not None for w in param.widths) == 2
    if param.mean:  # entries that start at a number other than zero: a MatMul knows of none
        if matrix:
            raise Refusal(
                f"all entries of the weight {param.name!r} start at {param.mean:g}, so that it makes averages of the vectors it multiplies",
                "start its entries at zero or at random; an average over the width is jnp.mean",
            )
        return _swap_product(to_var(param), x, dims, weight_first)
    if (reason := _elementwise_reason(param, x, dims)) is not None:
        if matrix:
            raise Refusal(reason)
        return _swap_product(to_var(param), x, dims, weight_first)
    parts = {own: places for own in range(len(param.widths)) if (places := places_of(param, own)) is not None}
    laid = {own: param.laid(own) for own in parts}
    for i, j in zip(*dims.contract, strict=True):
        if (own := param.axes[i]) is not None and param.widths[own] is not None:
            x = agreeing(param, own, x, j)
            x = among_zeros(x, j, parts.pop(own), in_whole(param, own).laid(own)) if own in parts else x
    check_symmetry(param)
    for own in laid:
        param = in_whole(param, own)
    letters_w = _param_letters(param)
    letters_x = [""] * rank_x
    spare = iter(LETTERS[len(param.widths) :])
    for sides in (dims.contract, dims.batch):
        for i, j in zip(*sides, strict=True):
            axis = param.axes[i]
            letters_x[j] = next(spare) if axis is None else letters_w[axis]
    for j in dims.free(1, rank_x):
        letters_x[j] = next(spare)
    batch = [(param.layout[i] or x.layout[j], letters_x[j]) for i, j in zip(*dims.batch, strict=True)]
    free_w = [(param.layout[i], letters_w[a] if (a := param.axes[i]) is not None else "") for i in dims.free(0, rank_w)]
    free_x = [(x.layout[j], letters_x[j]) for j in dims.free(1, rank_x)]
    out = batch + (free_w + free_x if weight_first else free_x + free_w)
    shared = {c: x.layout[j] for j, c in enumerate(letters_x) if c in letters_w}
    # letters that only x has, of axes the parameter gained with size one, are dropped with them
    gone = [j for j, c in enumerate(letters_x) if c not in letters_w and j in dims.contract[1]]
    if gone:
        x = map_positions(
            x, position("sum", axes=tuple(gone)), tuple(a for j, a in enumerate(x.layout) if j not in gone)
        )
        letters_x = [c for j, c in enumerate(letters_x) if j not in gone]
    product = _matmul(param, x, letters_w, letters_x, shared, out)
    made_letters = [letter for _, letter in out]
    for own, places in parts.items():
        product = at_places(product, made_letters.index(letters_w[own]), places, laid[own])
    return product if param.scale is None else scaled(product, param.scale)


def _as_sum(param: Param, x: Var, dims: Dims, weight_first: bool) -> Value:
    """(W + W') x, where W itself has other uses besides."""
    root = math.sqrt(2.0)
    one = replace(param.times(1 / root), symmetric=False, apart=False)
    i, j = (k for k, a in enumerate(param.axes) if a is not None and param.widths[a] is not None)
    axes = list(param.axes)
    axes[i], axes[j] = axes[j], axes[i]
    made = [times_weight(p, x, dims, weight_first) for p in (one, replace(one, axes=tuple(axes)))]
    return lincomb([(1.0, to_var(part)) for part in made])


def _param_letters(param: Param) -> list[str]:
    return list(LETTERS[: len(param.widths)])


def _elementwise_reason(param: Param, x: Var, dims: Dims) -> str | None:
    """Why this product is not a MatMul: the hidden vector keeps its width."""
    axis = width_axis(x.layout)
    if x.det or axis is None or axis in dims.contract[1]:
        return None
    return (
        "it multiplies a hidden vector by a weight without summing over the vector's width"
        if axis not in dims.batch[1]
        else "it multiplies a hidden vector by a weight matrix entry by entry along the width"
    )


def _swap_product(param: Var, x: Var, dims: Dims, weight_first: bool) -> Var:
    if weight_first:
        return _sum_of_products(param, x, dims)
    return _sum_of_products(x, param, dims.swapped())


def _matmul(
    param: Param, x: Var, letters_w: Sequence[str], letters_x: Sequence[str], shared: dict[str, Axis], out: Sequence[tuple[Axis, str]],
) -> Var:  # fmt: skip
    """Build the MatMul, one per part of the width that is summed over, and of the width that is made."""
    made_letters = [letter for _, letter in out]
    wide = [c for c, w in zip(letters_w, param.widths, strict=True) if w is not None]
    over = next((c for c in wide if c in shared and c not in made_letters), None)
    into = next((c for c in wide if c in made_letters), None)
    layout = tuple(a for a, _ in out)
    result = "".join(c for c in made_letters)
    power = param.power + x.power + (HALF if over is not None else 0)
    parts = param.pieces(letters_w.index(into)) if into is not None else []
    cut = into is not None and into not in shared and len(parts) > 1
    blocks = []
    for part in parts if cut else [None]:
        terms, at = [], Fraction(0)
        for width, node in x.blocks:
            regions = {} if part is None or into is None else {into: part}
            if over is not None and len(x.blocks) > 1:
                start = param.region[letters_w.index(over)][0] + at
                regions[over] = (start, start + width)
            weight, of_weight = _weight_for(param, letters_w, shared, regions)
            made: Node = MatMul(f"{of_weight},{''.join(letters_x)}->{result}", weight, node)
            at += width
            terms.append((1.0, Var.of(_with_new_axes(made, out, layout), layout, power)))
        blocks.append((Fraction(0) if part is None else part[1] - part[0], lincomb(terms)))
    if not cut:
        return blocks[0][1]
    return Var(tuple((width, var.node) for width, var in blocks), layout, blocks[0][1].power)


def _weight_for(
    param: Param, letters_w: Sequence[str], shared: dict[str, Axis], regions: dict[str, tuple[Fraction, Fraction]]
) -> tuple[Weight, str]:
    """The weight with its axes laid out like the vector's it multiplies, and its letters. regions: of width axes that are cut."""
    shape: list[int] = []
    widths: list[Fraction | None] = []
    where = list(param.region)
    for axis, letter in enumerate(letters_w):
        if param.widths[axis] is None:
            shape.append(int(param.size(axis)))
            widths.append(None)
            continue
        laid = shared.get(letter) or param.laid(axis)
        finite = math.prod(f for f in laid if isinstance(f, int))
        if letter in regions:
            if finite != 1:
                raise Refusal(
                    "it multiplies flattened positions of concatenated widths by a weight",
                    "flatten before concatenating",
                )
            where[axis] = regions[letter]
        shape.append(finite)
        widths.append((where[axis][1] - where[axis][0]) / finite)
    letters = list(letters_w)
    axes = [i for i, w in enumerate(widths) if w is not None]
    if not param.symmetric or where[axes[0]] == where[axes[1]]:
        return weight_node(param, tuple(shape), tuple(widths), tuple(where)), "".join(letters)
    i, j = axes  # a part off the diagonal, which stands below it as its transpose
    if where[i][0] < where[j][1] and where[j][0] < where[i][1]:
        # it holds some of the diagonal, which is a symmetric matrix of its own
        raise Redo(alike(param, (i, j), (*where[i], *where[j])))
    if where[i][0] > where[j][0]:
        shape[i], shape[j] = shape[j], shape[i]
        widths[i], widths[j] = widths[j], widths[i]
        where[i], where[j] = where[j], where[i]
        letters[i], letters[j] = letters[j], letters[i]
    plain = replace(param, symmetric=False)
    return weight_node(plain, tuple(shape), tuple(widths), tuple(where)), "".join(letters)


def _with_new_axes(node: Node, out: Sequence[tuple[tuple[int | Fraction, ...], str]], layout: Layout) -> Node:
    """Put back axes of size one that the parameter had gained."""
    if all(letter for _, letter in out):
        return node
    var = Var.of(node, tuple(a for a, letter in out if letter))
    return map_positions(var, position("reshape", to=unit_shape(layout)), layout).node
