"""The order in which quantities are computed, with repeated structure rolled into loops.

The layers of a deep network, or the steps of a recurrent one, are the same operations on the results of the layer before. In an
order that keeps each layer together they are a repeated run of equal signatures, which becomes one `Loop`: compile time no
longer grows with depth, and a loop is a barrier that keeps XLA from recomputing one layer inside the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import sympy as sp

from tensorprog.ir import ArrayOp, LinComb, Moment, Node, Nonlin, PositionMap
from tensorprog.kernel.graph import Data, Expect, Factored, Operand, Quantity, Ran, Shifts, Zero, quantities

__all__ = ["Loop", "Read", "Step", "operands_of", "schedule", "signature"]

LEAST_GROUPS = 2  # a loop keeps XLA from computing one layer again inside the next, which two layers already repay
# Shifts and sums over many orders do that by themselves, and numbers of one input need not: a loop only saves code.
LEAST_SHIELDED = 4


@dataclass(frozen=True)
class Read:
    """Where an operation in a loop finds an operand.

    here: in the same group, at position `at`. before: in the group before. fixed: the same operand in every group.
    each: another operand in each group, given in `operands`.
    """

    kind: str
    at: int = 0
    operands: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Loop:
    """`groups` of equal operations, one after the other; `reads[j][k]` says where position j finds its k-th operand.

    first: for each position that the next group reads, what the first group reads in its place.
    """

    groups: tuple[tuple[Quantity, ...], ...]
    reads: tuple[tuple[Read, ...], ...]
    first: Mapping[int, Quantity]


Step = Quantity | Loop
Wire = tuple[Operand, int | None]  # an operand, and its place in the sequence where it is computed there


def operands_of(quantity: Quantity) -> tuple[Operand, ...]:
    """What a quantity reads."""
    return getattr(quantity, "operands", ())


def schedule(roots: Sequence[Quantity], cross: bool, *, roll: bool = True) -> list[Step]:
    """The quantities of one kind that the roots need, in order, leaves first, loops rolled.

    Three orders are tried: each operation as early or as late as it can be, or as the longest chain comes by it. One of
    them keeps the chains of a layer (its covariance, its tangent's) in step. The one that leaves less code is taken.
    """
    inside = [q for q in quantities(roots) if getattr(q, "cross", False) == cross or isinstance(q, Zero)]
    ready: set[Quantity] = set()  # what the inputs alone determine comes first, and every step finds its part there
    for q in inside:
        given = all(o.quantity in ready if o.side is None else not cross for o in operands_of(q))
        if given and (isinstance(q, Data) or not operands_of(q)):
            ready.add(q)
    leaves = [q for q in inside if q in ready]
    ordered = [q for q in inside if q not in ready]
    if not roll:
        return [*leaves, *ordered]
    orders = (_in_levels(ordered, early=True), _in_levels(ordered, early=False), _along_chains(ordered))
    return [*leaves, *min(map(_rolled, orders), key=_code)]


def _code(steps: Iterable[Step]) -> int:
    return sum(len(step.reads) if isinstance(step, Loop) else 1 for step in steps)


def _levels(ordered: Sequence[Quantity], *, early: bool) -> dict[Quantity, int]:
    """The longest way from the leaves, or the negative of that to the end."""
    level = dict.fromkeys(ordered, 0)
    for q in ordered if early else reversed(ordered):
        for o in operands_of(q):
            if o.side is None and o.quantity in level:
                if early:
                    level[q] = max(level[q], level[o.quantity] + 1)
                else:
                    level[o.quantity] = min(level[o.quantity], level[q] - 1)
    return level


def _in_levels(ordered: Sequence[Quantity], *, early: bool) -> list[Quantity]:
    """Sorted by level; equal operations keep one order in every level."""
    level = _levels(ordered, early=early)
    kinds: dict[Any, int] = {}
    keys = {q: (level[q], kinds.setdefault(signature(q), len(kinds)), i) for i, q in enumerate(ordered)}
    return sorted(ordered, key=keys.__getitem__)


def _along_chains(ordered: Sequence[Quantity]) -> list[Quantity]:
    """Down the longest chain to its start, and on the way back everything else just before it is read."""
    level = _levels(ordered, early=True)

    def deepest_first(found: Iterable[Quantity]) -> list[Quantity]:
        return sorted(found, key=lambda q: -level[q])

    def before(q: Quantity) -> Iterator[Quantity]:
        return iter(deepest_first(o.quantity for o in operands_of(q) if o.side is None and o.quantity in level))

    done: dict[Quantity, None] = {}
    for end in deepest_first(ordered):
        stack = [(end, before(end))] if end not in done else []
        while stack:
            q, rest = stack[-1]
            following = next((r for r in rest if r not in done), None)
            if following is None:
                done[q] = None
                stack.pop()
            else:
                stack.append((following, before(following)))
    return list(done)


# ------------------------------------------------------------------------------------------ repeated runs


def _rolled(sequence: list[Quantity]) -> list[Step]:
    """The sequence with its longest repeated run as a loop, and so on in what is left on both sides."""
    found = _longest_run(sequence)
    if found is None:
        return list(sequence)
    start, loop = found
    stop = start + len(loop.groups) * len(loop.reads)
    return [*_rolled(sequence[:start]), loop, *_rolled(sequence[stop:])]


class _Sequence:
    """An order of quantities, with what the search for repeated runs asks of it.

    kinds: a number for each operation, apart from what it reads. wires: its operands, and where in the sequence they stand;
    places: the same as an array, -1 for what is not in it.
    """

    def __init__(self, quantities: list[Quantity]):
        self.quantities = quantities
        places = {q: i for i, q in enumerate(quantities)}
        numbers: dict[Any, int] = {}
        self.kinds = np.array([numbers.setdefault(signature(q), len(numbers)) for q in quantities], int)
        self.wires: list[list[Wire]] = [
            [(o, places.get(o.quantity) if o.side is None else None) for o in operands_of(q)] for q in quantities
        ]
        self.places = np.full((len(quantities), max(map(len, self.wires), default=0)), -1)
        for i, own in enumerate(self.wires):
            for k, (_, place) in enumerate(own):
                self.places[i, k] = -1 if place is None else place
        self.alive = self._alive()
        self._costly = np.cumsum([0, *(isinstance(q, (Expect, Factored, Shifts)) for q in quantities)])
        self._shielded = np.cumsum([0, *map(_shields, quantities)])

    def _alive(self) -> np.ndarray:
        """How many arrays of pairs are waiting to be read, before each operation."""
        last = np.arange(len(self.quantities) + 1)
        for i, own in enumerate(self.places):
            last[own[own >= 0]] = i
        ends = np.zeros(len(self.quantities) + 2, int)
        for i, q in enumerate(self.quantities):
            if _is_of_pairs(q):
                ends[i + 1] += 1
                ends[last[i] + 1] -= 1
        return np.cumsum(ends)

    def repays(self, start: int, period: int, count: int) -> bool:
        """Is a loop of these groups better than its code written out? What is not costly is better fused."""
        costly = self._costly[start + period] > self._costly[start]
        return bool(costly and (count >= LEAST_SHIELDED or self._shielded[start + period] == self._shielded[start]))

    def runs(self, period: int) -> list[tuple[int, int]]:
        """(start, length) of stretches in which every operation is like the one a period later; long ones only."""
        here, there = self.places[:-period], self.places[period:]
        moved = (there - here == period) | (there == here)
        alike = (self.kinds[:-period] == self.kinds[period:]) & np.all(
            ((here < 0) == (there < 0)) & ((here < 0) | moved), axis=1
        )
        edges = np.flatnonzero(np.diff(np.concatenate([[False], alike, [False]]).astype(int)))
        pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        return [(i, j - i) for i, j in pairs if (j - i) // period + 2 >= LEAST_GROUPS]  # the group before may join


def _longest_run(quantities: list[Quantity]) -> tuple[int, Loop] | None:
    """The run whose loop saves most code. It is cut into groups where they hand the fewest arrays on to the next, which XLA copies."""
    sequence = _Sequence(quantities)
    best: tuple[int, int, Loop] | None = None
    for period in _candidates(sequence.kinds.tolist()):
        for start, length in sequence.runs(period):
            if best is not None and length + period <= best[0]:
                continue
            middle = sequence.alive[start + length // (2 * period) * period :]
            for shift in sorted(range(min(period, length)), key=lambda s: middle[s]):
                found = _loop(sequence, start + shift, period, (length - shift) // period + 1)
                if found is not None:
                    begin, loop = found
                    saved = (len(loop.groups) - 1) * period
                    if best is None or saved > best[0]:
                        best = (saved, begin, loop)
                    break
    return None if best is None else (best[1], best[2])


def _candidates(kinds: list[int]) -> list[int]:
    """Periods worth trying: distances between equal operations near the middle."""
    middle = len(kinds) // 2
    periods: set[int] = set()
    for i in range(max(0, middle - 40), min(len(kinds), middle + 40)):
        again = [j for j in range(i + 1, min(len(kinds), i + 400)) if kinds[j] == kinds[i]]
        periods.update(j - i for j in again[:8])
    return sorted(periods)


def _loop(sequence: _Sequence, start: int, period: int, count: int) -> tuple[int, Loop] | None:
    """The loop of `count` groups from `start` on and where it begins, or None where the groups read each other in another way.

    The group before may be the first: it finds elsewhere what later groups find in the group before. So may the second
    be, where the first reads what is no group at all.
    """
    for begin, groups in ((start - period, count + 1), (start, count), (start + period, count - 1)):
        if begin >= 0 and groups >= LEAST_GROUPS and begin + groups * period <= len(sequence.quantities):
            made = _try_loop(sequence, begin, period, groups)
            if made is not None:
                return begin, made
    return None


def _try_loop(sequence: _Sequence, start: int, period: int, count: int) -> Loop | None:
    kinds, wires = sequence.kinds, sequence.wires
    if not sequence.repays(start, period, count):
        return None
    if not np.array_equal(kinds[start : start + period], kinds[start + period : start + 2 * period]):
        return None
    first: dict[int, Quantity] = {}
    reads = []
    for j in range(period):
        row = []
        for k in range(len(wires[start + j])):
            seen = [wires[start + g * period + j][k] for g in range(count)]
            read = _read(seen, start, period, j)
            if read is None:
                return None
            if read.kind == "before":
                initial, like = seen[0][0].quantity, sequence.quantities[start + read.at]
                if first.setdefault(read.at, initial) is not initial or _shape(initial) != _shape(like):
                    return None
            row.append(read)
        reads.append(tuple(row))
    groups = tuple(tuple(sequence.quantities[start + g * period :][:period]) for g in range(count))
    return Loop(groups, tuple(reads), first)


def _read(seen: list[Wire], start: int, period: int, j: int) -> Read | None:
    """How position j finds an operand that the groups read at `seen`; the first group may find it elsewhere."""
    operands = tuple(o for o, _ in seen)
    initial, first_place = seen[0]
    outside = first_place is None or first_place < start
    if all(o == initial for o in operands):
        return Read("fixed", operands=operands[:1]) if outside else None
    if all(place is None for _, place in seen[1:]):
        if not outside or any(o.side is None and _is_of_pairs(o.quantity) for o in operands):
            return None  # stacks of arrays of pairs would cost memory that grows with depth
        alike = len({_shape(o.quantity) for o in operands}) == 1 and len({o.side for o in operands}) == 1
        return Read("each", operands=operands) if alike else None
    offsets = {None if place is None else place - (start + g * period) for g, (_, place) in enumerate(seen) if g}
    offset = offsets.pop()
    if offsets or offset is None:
        return None
    if 0 <= offset < j:
        return Read("here", offset) if first_place == start + offset else None
    starts = outside and initial.side is None
    return Read("before", offset + period) if -period <= offset < 0 and starts else None


def _is_of_pairs(quantity: Quantity) -> bool:
    """Is it an array for each pair of inputs? Constants are not."""
    return getattr(quantity, "cross", False) and bool(operands_of(quantity))


def _shields(quantity: Quantity) -> bool:
    """Does XLA compute it once anyway, or is it a number of one input, which is quickly computed again?"""
    if isinstance(quantity, Shifts):
        return True
    if not isinstance(quantity, Expect):
        return False
    formula = quantity.expectation.formula
    return formula is None or not (quantity.cross or quantity.shape or formula.atoms(sp.Function, sp.Pow))


def _shape(quantity: Quantity) -> tuple[int, ...]:
    return quantity.shape  # type: ignore[attr-defined]


def signature(quantity: Quantity) -> Any:
    """What an operation is, apart from which operands it reads."""
    skipped = ("operands", "node", "asked")
    own = tuple(getattr(quantity, f.name) for f in fields(quantity) if f.name not in skipped)
    sides = tuple((o.side, _shape(o.quantity)) for o in operands_of(quantity))
    return (type(quantity), own, sides, _computed(quantity.node) if isinstance(quantity, (Data, Ran)) else None)


def _computed(node: Node) -> Any:
    """What a deterministic instruction computes, apart from its operands."""
    match node:
        case Nonlin(phi=phi):
            return "Nonlin", phi
        case Moment():
            return ("Moment",)
        case LinComb(terms=terms):
            return "LinComb", tuple(None if isinstance(a, Node) else a for a, _ in terms)
        case PositionMap(op=op):
            return "PositionMap", op
        case ArrayOp(primitive=primitive, params=params):
            return "ArrayOp", primitive, params
    return node
