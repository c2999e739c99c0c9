"""Sums over positions inside nonlinearities, taken apart into single positions.

Two equalities let a nonlinearity of a non-Gaussian position map become a function of Gaussians:
phi(concat(x, y)) = concat(phi(x), phi(y)), and a short window sum is a sum of strided slices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from tensorprog.ir import LinComb, Moment, Node, Nonlin, PositionMap, Type, position
from tensorprog.passes.structure import Structure

__all__ = ["opened_window", "split_concatenation"]

_MOST_PLACES = 4  # a function of more non-Gaussian places than this is left whole: no rule reaches so many arguments


# ------------------------------------------------------------------------------------------ concatenations


def split_concatenation(node: Nonlin | Moment, facts: Structure) -> Node | None:
    """phi(concat(..)) as concat(phi(..), ..) where the concatenation is not Gaussian; None elsewhere."""
    for x in node.xs:
        parts = None if facts[x].gaussian else _partition(x, facts)
        if parts is not None:
            return _split(node, *parts)
    return None


def _partition(x: Node, facts: Structure) -> tuple[int, list[tuple[int, int]]] | None:
    """The parts of a concatenation, or of one that stands in a sum."""
    if (found := _parts(x)) is not None or not isinstance(x, LinComb):
        return found
    inner = (_parts(term) for _, term in x.terms if term.type.kind == "vector" and not facts[term].gaussian)
    return next((parts for parts in inner if parts is not None), None)


def _parts(x: Node) -> tuple[int, list[tuple[int, int]]] | None:
    """The axis of a concatenation and the interval of each part; None if it is none."""
    if not isinstance(x, LinComb) or len(x.terms) < 2:
        return None
    intervals, axes = [], set()
    for a, term in x.terms:
        if a != 1.0 or not (isinstance(term, PositionMap) and term.op.name == "pad"):
            return None
        moved = [(i, c) for i, c in enumerate(term.op.kw["config"]) if c != (0, 0, 0)]
        if len(moved) != 1 or moved[0][1][2] or min(moved[0][1][:2]) < 0:
            return None
        axis, (low, high, _) = moved[0]
        axes.add(axis)
        intervals.append((low, x.type.shape[axis] - high))
    ordered = sorted(intervals)
    whole = len(axes) == 1 and ordered[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(ordered))
    if not whole or ordered[-1][1] != x.type.shape[(axis := axes.pop())]:
        return None
    return axis, ordered


def _split(node: Nonlin | Moment, axis: int, intervals: list[tuple[int, int]]) -> Node:
    size = node.xs[0].type.shape[axis]
    terms = []
    for start, stop in intervals:
        xs = tuple(_cut(x, axis, start, stop) for x in node.xs)
        thetas = tuple(_cut_theta(t, axis - len(node.xs[0].type.shape), start, stop) for t in node.thetas)
        part = type(node)(node.phi, xs, thetas, source=node.source)
        config = tuple((start, size - stop, 0) if i == axis else (0, 0, 0) for i in range(len(part.type.shape)))
        shape = (*part.type.shape[:axis], size, *part.type.shape[axis + 1 :])
        made = Type(part.type.kind, shape, part.type.axis, part.type.width)
        terms.append((1.0, PositionMap(position("pad", config=config), (part,), made, source=node.source)))
    return LinComb(tuple(terms), source=node.source)


def _cut(x: Node, axis: int, start: int, stop: int) -> Node:
    """x[start:stop] along an axis; of a concatenation that has this part, the part itself."""
    if isinstance(x, LinComb) and (found := _parts(x)) and found[0] == axis and (start, stop) in found[1]:
        for _, term in x.terms:
            assert isinstance(term, PositionMap)
            if term.op.kw["config"][axis][0] == start and term.args[0].type.shape[axis] == stop - start:
                return term.args[0]
    if isinstance(x, LinComb) and x.type.kind == "vector":
        from_end = axis - len(x.type.shape)
        terms = (
            (
                _cut_theta(a, from_end, start, stop) if isinstance(a, Node) else a,
                _cut(term, axis, start, stop)
                if term.type.kind == "vector"
                else _cut_theta(term, from_end, start, stop),
            )
            for a, term in x.terms
        )
        return LinComb(tuple(terms), source=x.source)
    shape = x.type.shape
    begin, end = [0] * len(shape), list(shape)
    begin[axis], end[axis] = start, stop
    return _sliced(x, tuple(begin), tuple(end), (1,) * len(shape))


def _cut_theta(theta: Node, from_end: int, start: int, stop: int) -> Node:
    axis = len(theta.type.shape) + from_end
    return theta if axis < 0 or theta.type.shape[axis] == 1 else _cut(theta, axis, start, stop)


def _sliced(x: Node, start: tuple[int, ...], stop: tuple[int, ...], stride: tuple[int, ...]) -> Node:
    op = position("slice", start=start, stop=stop, stride=stride)
    return PositionMap(op, (x,), Type(x.type.kind, op.shape(x.type.shape), x.type.axis, x.type.width), source=x.source)


# ------------------------------------------------------------------------------------------ windows


def opened_window(x: PositionMap) -> LinComb | None:
    """A sum over at most four places as a sum of slices; None where it is another map, or a longer sum."""
    match x.op.name:
        case "sum":
            slices = list(_places(x)) if _count(x) <= _MOST_PLACES else []
        case "window_sum" if _count(x) <= _MOST_PLACES and not any(map(any, x.op.kw["padding"])):
            slices = list(_offsets(x)) if set(x.op.kw["base_dilation"]) == {1} else []
        case _:
            return None
    return LinComb(tuple((1.0, s) for s in slices), source=x.source) if slices else None


def _count(x: PositionMap) -> int:
    if x.op.name == "sum":
        return math.prod(x.args[0].type.shape[a] for a in x.op.kw["axes"])
    return math.prod(x.op.kw["window"])


def _places(x: PositionMap) -> Iterator[Node]:
    inner, axes = x.args[0], x.op.kw["axes"]
    shape = inner.type.shape
    for place in itertools.product(*(range(shape[a]) for a in axes)):
        at = dict(zip(axes, place, strict=True))
        start = tuple(at.get(i, 0) for i in range(len(shape)))
        stop = tuple(at[i] + 1 if i in at else n for i, n in enumerate(shape))
        row = _sliced(inner, start, stop, (1,) * len(shape))
        yield PositionMap(position("reshape", to=x.type.shape), (row,), x.result, source=x.source)


def _offsets(x: PositionMap) -> Iterator[Node]:
    inner, kw = x.args[0], x.op.kw
    for offset in itertools.product(*map(range, kw["window"])):
        start = tuple(o * d for o, d in zip(offset, kw["window_dilation"], strict=True))
        stop = tuple(a + (n - 1) * s + 1 for a, n, s in zip(start, x.type.shape, kw["strides"], strict=True))
        yield _sliced(inner, start, stop, tuple(kw["strides"]))
