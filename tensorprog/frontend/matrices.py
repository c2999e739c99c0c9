"""Matrix expressions: `(W1 + W2) @ h`, `W - W.T`, `jnp.eye(n) + W`, `(A @ B) @ h`, `v[:, None] * W`, a state made of outer products.

A tensor program has no instruction that makes a matrix of hidden vectors or of other matrices. But what is made of them by sums and
products is linear in each of them, and ends by multiplying a vector: (A B + u v') h = A (B h) + u (v . h). So an array with two width
axes stays what it is written as, a sum of products of factors (`Matrices`), and is multiplied out factor by factor when it meets the
vector: first the vectors that share an axis of a matrix, then the matrix, as long as nothing with two width axes has to be made.

An axis of a product has a label, as in an einsum: factors that share one are multiplied along it, one that the product itself no
longer has is summed, one that no factor has is a copy, and an axis repeated in the product is its diagonal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tensorprog.frontend.build import constant, lincomb, scaled, to_var
from tensorprog.frontend.contract import Dims, dotted, product, sum_over
from tensorprog.frontend.cutting import take_step
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import (
    Complex,
    Known,
    Layout,
    Matrices,
    OwnPlaces,
    Param,
    Squares,
    Term,
    Value,
    Var,
    fit_power,
    layout_of,
    unit_shape,
)
from tensorprog.ir import position

if TYPE_CHECKING:
    pass

__all__ = ["Factor", "expression", "is_wide", "joined", "narrowed", "part_of", "summed", "widths_of"]

Factor = tuple[Known | Var | Param, tuple[int, ...]]
Operand = tuple[Var | Param, tuple[int, ...]]  # a factor that is committed to be one or the other


def is_wide(value: Value) -> bool:
    """Is it a known matrix, such as `jnp.eye(n)`?"""
    return isinstance(value, Known) and sum(a != b for a, b in zip(*value.shapes, strict=True)) > 1


def widths_of(layout: Layout) -> int:
    """How many width axes there are."""
    return sum(isinstance(f, Fraction) for axis in layout for f in axis)


def narrowed(value: Value) -> Value:
    """A matrix expression multiplied out, where no more than one width axis is left."""
    if not isinstance(value, Matrices) or widths_of(value.layout) > 1:
        return value
    if not value.terms:
        return constant(np.zeros(unit_shape(value.layout)), value.layout)
    return lincomb([(1.0, _multiplied_out(term, value.layout)) for term in value.terms])


# ------------------------------------------------------------------------------------------ as terms


def expression(value: Value) -> Matrices:
    """Any value as a sum of products."""
    if isinstance(value, Matrices):
        return value
    if isinstance(value, (Squares, Complex, OwnPlaces)) or (
        isinstance(value, Param) and value.mean and widths_of(value.layout) > 1
    ):
        value = to_var(value)
    if isinstance(value, Known):
        if is_wide(value):
            return _known_matrix(value)
        layout = layout_of(value.shapes)
        if any(isinstance(f, Fraction) for axis in layout for f in axis) or not np.array_equal(*value.values):
            value = to_var(value)
        elif not np.any(value.values[0]):
            return Matrices((), layout)
    else:
        layout = value.layout
    axes = tuple(range(len(layout)))
    return Matrices((Term((_squeezed(value, layout),), axes),), layout)


def _squeezed(value: Known | Var | Param, layout: Layout) -> Factor:
    """A factor without its axes of size one."""
    alike = [isinstance(value, Var) and value.det and n == 1 for n in unit_shape(layout)]  # along the width, too
    labels = tuple(i for i, axis in enumerate(layout) if axis and not alike[i])
    if len(labels) == len(layout):
        return value, labels
    if isinstance(value, Param):
        return replace(value, axes=tuple(value.axes[i] for i in labels)), labels
    if isinstance(value, Known):
        shapes = [tuple(v.shape[i] for i in labels) for v in value.values]
        return Known(tuple(v.reshape(s) for v, s in zip(value.values, shapes, strict=True))), labels  # type: ignore[arg-type]
    kept = tuple(layout[i] for i in labels)
    if len(value.layout) < len(layout):
        raise AssertionError("a factor has the axes of its layout")
    return map_positions(value, position("reshape", to=unit_shape(kept)), kept), labels


def _known_matrix(value: Known) -> Matrices:
    """A known matrix as a multiple of the identity plus a number for all entries. Raises Refusal where it is anything else."""
    layout = layout_of(value.shapes)
    wide = [i for i, axis in enumerate(layout) if any(isinstance(f, Fraction) for f in axis)]
    numbers, diagonals = [], []
    for array in value.values:
        if len(wide) > 2 or array.size != math.prod(array.shape[i] for i in wide):
            raise _not_exchangeable()
        plain = array.reshape([array.shape[i] for i in wide])
        number, diagonal, square = plain[0, -1], plain[0, 0], plain.shape[0] == plain.shape[1]
        others = np.count_nonzero(plain != number)
        if others and not (
            square and diagonal != number and others == np.count_nonzero(np.diagonal(plain) == diagonal)
        ):
            raise _not_exchangeable()
        numbers.append(float(number))
        diagonals.append(float(diagonal) - float(number))
    everywhere, on_diagonal = tuple(range(len(layout))), list(range(len(layout)))
    on_diagonal[wide[1]] = on_diagonal[wide[0]]
    terms = []
    for pair, axes in ((numbers, everywhere), (diagonals, tuple(on_diagonal))):
        if any(pair):
            try:
                number, power = fit_power((np.asarray(pair[0]), np.asarray(pair[1])))
            except ValueError:
                raise _not_exchangeable() from None
            terms.append(Term(((constant(number, (), power), ()),), axes))
    return Matrices(tuple(terms), layout)


def _not_exchangeable() -> Refusal:
    return Refusal(
        "it uses a constant matrix that is not c n^p times the identity plus a number for all entries",
        "a constant may not tell one hidden coordinate from another: they are exchangeable",
    )


def joined(a: Term, b: Term, pairs: Iterable[tuple[int, int]]) -> tuple[Term, Term]:
    """Two terms with labels of their own, but for these pairs of axes, which get one label."""
    b = _renamed(b, lambda n: n + a.fresh)
    for i, j in pairs:
        old, new = b.axes[j], a.axes[i]
        a, b = (_renamed(t, lambda n, old=old, new=new: new if n == old else n) for t in (a, b))  # type: ignore[misc]
    return a, b


def _renamed(term: Term, name: Callable[[int], int]) -> Term:
    factors = tuple((value, tuple(map(name, labels))) for value, labels in term.factors)
    return Term(tuple(map(_diagonal, factors)), tuple(map(name, term.axes)))


def _diagonal(factor: Factor) -> Factor:
    if len(set(factor[1])) < len(factor[1]):
        raise Refusal(
            "it takes the diagonal of a matrix that is no constant",
            "a sum over the diagonal of a weight has no limit of its own here; use a vector of weights",
        )
    return factor


def summed(term: Term, over: Sequence[int], layout: Layout) -> Term:
    """A term without some of its axes. A sum along an axis that no factor has is a multiple."""
    factors, axes = term.factors, tuple(a for i, a in enumerate(term.axes) if i not in over)
    used = {*axes, *(n for _, labels in factors for n in labels)}
    for label in dict.fromkeys(term.axes[i] for i in over if term.axes[i] not in used):
        axis = next(layout[i] for i in over if term.axes[i] == label)
        size = math.prod(axis, start=Fraction(1))
        growing = sum(isinstance(f, Fraction) for f in axis)
        factors += ((constant(np.float64(size), (), Fraction(growing)), ()),)
    return Term(factors, axes)


# ------------------------------------------------------------------------------------------ multiplied out


def _multiplied_out(term: Term, layout: Layout) -> Var:
    """The product of the factors, without ever making an array of two width axes."""
    given = _constants_first(term)
    numbers = [to_var(v) for v, labels in given if not labels]
    factors: list[Operand] = [
        (v if isinstance(v, (Param, Var)) else to_var(v), labels) for v, labels in given if labels
    ]
    while (chosen := _next(factors, term.axes)) is not None:
        factors = _with_matrix(factors, *chosen, term.axes)
    for label in dict.fromkeys(
        n for v, labels in factors for n, a in zip(labels, v.layout, strict=True) if widths_of((a,))
    ):
        if label not in term.axes:
            factors = _together(factors, [f for f in factors if label in f[1]], term.axes)
    factors = _together(factors, factors, term.axes)
    made = _arranged(*factors[0], term.axes, layout) if factors else None
    for number in numbers:
        if made is None:
            made = number
        elif number.det:
            made = scaled(made, number) if made.random else product(made, number)
        else:
            made = dotted(made, number, Dims(((), ()), ((), ())))  # type: ignore[assignment]
    if made is None:
        made = constant(np.float64(1.0))
    return made if factors else _arranged(made, (), term.axes, layout)


def _constants_first(term: Term) -> list[Factor]:
    """The factors, with constants multiplied with each other; where these choose one matrix of several, that alone is left."""
    others = [f for f in term.factors if not (isinstance(f[0], Known) and f[1])]
    constants = [(f[0].values[0], f[1]) for f in term.factors if isinstance(f[0], Known) and f[1]]
    needed = {*term.axes, *(n for _, labels in others for n in labels)}
    while (
        pair := next((p for p in itertools.combinations(constants, 2) if {*p[0][1]} & {*p[1][1]}), None)
    ) is not None:
        constants = [c for c in constants if all(c is not p for p in pair)]
        kept = needed.union(*(labels for _, labels in constants))
        labels = tuple(n for n in dict.fromkeys((*pair[0][1], *pair[1][1])) if n in kept)
        (a, of_a), (b, of_b) = pair
        constants.append((np.einsum(a, list(of_a), b, list(of_b), list(labels)), labels))
    made = others
    for array, labels in constants:
        meets = [f for f in made if labels[0] in f[1]] if len(labels) == 1 and np.count_nonzero(array) == 1 else []
        if len(meets) != 1 or labels[0] in term.axes or not isinstance(meets[0][0], Param):
            made = [*made, (Known((array, array)), labels)]
            continue
        place = int(np.flatnonzero(array)[0])
        number = np.asarray(array[place])
        made = [(Known((number, number)), ()), *(part_of(f, labels[0], place) if f is meets[0] else f for f in made)]
    return made


def part_of(factor: Factor, label: int, place: int) -> Factor:
    """The entries of a factor at one place along a finite axis."""
    value, labels = factor
    if label not in labels:
        return factor
    i = labels.index(label)
    order = (i, *(k for k in range(len(labels)) if k != i))
    if isinstance(value, Known):
        moved: Value = Known((value.values[0].transpose(order), value.values[1].transpose(order)))
    elif isinstance(value, Param):
        moved = replace(value, axes=tuple(value.axes[k] for k in order))
    else:
        moved = map_positions(value, position("transpose", permutation=order), tuple(value.layout[k] for k in order))
    return take_step(moved, place), tuple(n for n in labels if n != label)  # type: ignore[return-value]


def _next(factors: Sequence[Operand], kept: Collection[int]) -> tuple[Operand, int] | None:
    """A matrix, and an axis of it along which only vectors are left to multiply it; None where there is no matrix."""
    matrices = [f for f in factors if widths_of(f[0].layout) > 1]
    if not matrices:
        return None
    for matrix in reversed(matrices):
        value, labels = matrix
        for label, axis in reversed(list(zip(labels, value.layout, strict=True))):
            if widths_of((axis,)) and label not in kept and not any(label in m[1] for m in matrices if m is not matrix):
                return matrix, label
    names = sorted({repr(m[0].name) for m in matrices if isinstance(m[0], Param)})
    raise Refusal(
        f"it multiplies matrices with each other entry by entry, or sums over both axes of a product of them ({', '.join(names)})",
        "multiply a vector by one weight after the other; products entry by entry of matrices are in no tensor program",
    )


def _with_matrix(factors: Sequence[Operand], matrix: Operand, along: int, kept: Collection[int]) -> list[Operand]:
    """A matrix times all vectors along one of its axes."""
    value, labels = matrix
    others = [f for f in factors if f is not matrix]
    vectors = [f for f in others if along in f[1]]
    rest = [f for f in others if along not in f[1]]
    needed = {*kept, *labels, *(n for f in rest for n in f[1])}
    layout = dict(zip(labels, value.layout, strict=True))
    if not vectors:
        vectors = [(constant(np.ones(1), (layout[along],)), (along,))]
    vector = _all(vectors, needed)
    # finite axes that the matrix alone has, and that are summed
    later = {*kept, *(n for f in rest for n in f[1])}
    for label in labels:
        if label not in vector[1] and label not in later and label != along and not widths_of((layout[label],)):
            vector = _times(vector, (constant(np.ones(unit_shape((layout[label],)))), (label,)), {*needed, label})
    wide = {n for n in labels if widths_of((layout[n],)) and n != along}
    return [*rest, _times(matrix, vector, later | wide)]


def _together(factors: Sequence[Operand], some: Sequence[Operand], kept: Collection[int]) -> list[Operand]:
    """The factors with some of them multiplied, and summed along what nothing else needs."""
    if not some:
        return list(factors)
    rest = [f for f in factors if all(f is not s for s in some)]
    return [*rest, _all(some, {*kept, *(n for f in rest for n in f[1])})]


def _all(factors: Sequence[Operand], kept: Collection[int]) -> Operand:
    """Vectors multiplied with each other, and summed along what is not kept."""
    made = factors[0]
    for i, factor in enumerate(factors[1:], 2):
        made = _times(made, factor, {*kept, *(n for f in factors[i:] for n in f[1])})
    return _alone(made, kept)


def _alone(factor: Operand, kept: Collection[int]) -> Operand:
    value, labels = factor
    gone = tuple(i for i, n in enumerate(labels) if n not in kept)
    if not gone:
        return factor
    return sum_over(to_var(value), gone), tuple(n for n in labels if n in kept)


def _times(a: Operand, b: Operand, kept: Collection[int]) -> Operand:
    """Two factors multiplied: summed along what they share and is not kept, side by side along what they share and is."""
    common = [n for n in a[1] if n in b[1]]
    a, b = _alone(a, {*kept, *common}), _alone(b, {*kept, *common})
    sides = [
        tuple(tuple(f[1].index(n) for n in common if (n in kept) == batch) for f in (a, b)) for batch in (False, True)
    ]
    dims = Dims(sides[0], sides[1])  # type: ignore[arg-type]
    free = [n for f in (a, b) for n in f[1] if n not in common]
    return dotted(a[0], b[0], dims), (*(n for n in common if n in kept), *free)  # type: ignore[return-value]


def _arranged(value: Value, labels: tuple[int, ...], axes: tuple[int, ...], layout: Layout) -> Var:
    """The axes in the order that is asked for, with copies along those it has not."""
    var = to_var(value)
    order = tuple(labels.index(n) for n in axes if n in labels)
    var = map_positions(var, position("transpose", permutation=order), tuple(var.layout[i] for i in order))
    places = tuple(i for i, n in enumerate(axes) if n in labels)
    if len(places) == len(axes):
        return var
    own = dict(zip(places, var.layout, strict=True))
    whole = tuple(own.get(i, axis) for i, axis in enumerate(layout))
    return map_positions(var, position("broadcast", to=unit_shape(whole), axes=places), whole)
