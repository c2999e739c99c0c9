"""Slopes of the same Gaussians as the rows of one array, so that E[F F'] is sampled at once for all pairs of them.

A maximum over k positions has k slopes, and a tangent kernel reads the means of k^2 products. All are functions of the same Gaussians,
and so averages over the same points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from tensorprog.ir import LinComb, Node, Nonlin, PositionMap, Type, position
from tensorprog.ir.phi import identity
from tensorprog.kernel.graph import Apply, Operand, Quantity, Zero, is_zero
from tensorprog.kernel.questions import Second, Work, ask, fresh, sizes_of

__all__ = ["Stacks"]

MOST_ROWS = 16


class Stacks:
    """The slopes of a program by what they read. Made when it is first asked."""

    def __init__(self, slopes: Callable[[], Iterable[Nonlin]], signature: Callable[[Nonlin], Hashable]):
        """slopes: all that there are. signature: which Gaussians a slope reads, and how."""
        self._slopes, self._signature = slopes, signature
        self._rows: dict[Node, tuple[Node, int]] | None = None

    def second(self, q: Second) -> Work[Quantity | None]:
        """E[u v] of two slopes; None where neither stands beside others."""
        if self._rows is None:
            self._rows = self._stacked()
        if q.u not in self._rows or q.v not in self._rows:
            return None
        sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
        spare = fresh(q.lu + q.lv)
        (u, i), (v, j) = self._rows[q.u], self._rows[q.v]
        letters, first, second = "", q.lu, q.lv
        if u is not q.u:
            letters, first = letters + (new := next(spare)), new + first
        if v is not q.v:
            letters, second = letters + (new := next(spare)), new + second
        if not letters:
            return None
        made = yield from ask(u, first, v, second, letters + q.out, q.cross)
        shape = tuple(sizes[c] for c in q.out)
        at = tuple(k for k, whole, row in ((i, u, q.u), (j, v, q.v)) if whole is not row)
        cut = position("slice", start=at, stop=tuple(k + 1 for k in at), stride=(1,) * len(at))
        if is_zero(made):
            return Zero(shape)
        return Apply(cut, (Operand(made),), tuple(range(len(at))), shape, q.cross)

    def _stacked(self) -> dict[Node, tuple[Node, int]]:
        """The array that each slope is a row of, or the slope itself, and which row."""
        groups: dict[Hashable, list[Nonlin]] = {}
        for slope in dict.fromkeys(self._slopes()):
            groups.setdefault((slope.type, self._signature(slope)), []).append(slope)
        found: dict[Node, tuple[Node, int]] = {}
        for every in groups.values():
            for start in range(0, len(every), MOST_ROWS):
                rows = every[start : start + MOST_ROWS]
                whole = _rows(rows) if len(rows) > 1 else rows[0]
                found |= {row: (whole, i) for i, row in enumerate(rows)}
        return found


def _rows(slopes: list[Nonlin]) -> Node:
    """Arrays of one type along a new first axis, as one function."""
    kind, count = slopes[0].type, len(slopes)
    axis = None if kind.axis is None else kind.axis + 1
    thin = Type("vector", (1, *kind.shape), axis, kind.width)
    whole = Type("vector", (count, *kind.shape), axis, kind.width)
    terms = []
    for i, slope in enumerate(slopes):
        row = PositionMap(position("reshape", to=thin.shape), (slope,), thin)
        place = position("pad", config=((i, count - 1 - i, 0), *((0, 0, 0) for _ in kind.shape)))
        terms.append((1.0, PositionMap(place, (row,), whole)))
    return Nonlin(identity, (LinComb(tuple(terms)),), (), source=slopes[0].source)
