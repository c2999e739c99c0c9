"""The order in which quantities are computed, with repeated structure rolled into loops.

The layers of a deep network, or the steps of a recurrent one, are the same operations on the results of the layer before. In an
order that keeps each layer together they are a repeated run of equal signatures, which becomes one `Loop`: compile time no
longer grows with depth, and a loop is a barrier that keeps XLA from recomputing one layer inside the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tensorprog.ir import ArrayOp, LinComb, Moment, Node, Nonlin, PositionMap
from tensorprog.kernel.graph import Data, Expect, Operand, Quantity, Shifts, quantities

__all__ = ["Loop", "Read", "Step", "operands_of", "schedule"]

LEAST_GROUPS = 2  # a loop keeps XLA from computing one layer again inside the next, which two layers already repay
LEAST_SHIELDED = 4  # shifts and sums over many orders do that by themselves; then a loop only saves code


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
    inside = [q for q in quantities(roots) if getattr(q, "cross", False) == cross]
    scope = {q for q in inside if cross or any(o.side is None for o in operands_of(q))}
    leaves = [q for q in inside if q not in scope]
    ordered = [q for q in inside if q in scope]
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
    keys = {q: (level[q], kinds.setdefault(_signature(q), len(kinds)), i) for i, q in enumerate(ordered)}
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


def _longest_run(sequence: list[Quantity]) -> tuple[int, Loop] | None:
    places = {q: i for i, q in enumerate(sequence)}
    signatures = [_signature(q) for q in sequence]
    wires = [[(o, places.get(o.quantity) if o.side is None else None) for o in operands_of(q)] for q in sequence]
    best: tuple[int, int, Loop] | None = None
    for period in _candidates(signatures):
        for start, length in _runs(signatures, wires, period):
            if best is not None and length + 2 * period <= best[0]:
                continue
            for shift in range(min(period, length)):
                loop = _loop(sequence, wires, start + shift, period, (length - shift) // period + 1)
                if loop is not None:
                    size = len(loop.groups) * period
                    if best is None or size > best[0]:
                        best = (size, places[loop.groups[0][0]], loop)
                    break
    return None if best is None else (best[1], best[2])


def _candidates(signatures: list[Any]) -> list[int]:
    """Periods worth trying: distances between equal signatures near the middle."""
    middle = len(signatures) // 2
    periods: set[int] = set()
    for i in range(max(0, middle - 40), min(len(signatures), middle + 40)):
        again = [j for j in range(i + 1, min(len(signatures), i + 400)) if signatures[j] == signatures[i]]
        periods.update(j - i for j in again[:8])
    return sorted(periods)


def _runs(signatures: list[Any], wires: list[list[Wire]], period: int) -> list[tuple[int, int]]:
    """(start, length) of stretches in which every operation is like the one a period later; long ones only."""
    runs, start = [], None
    for i in range(len(signatures) - period + 1):
        alike = (
            i + period < len(signatures)
            and signatures[i] == signatures[i + period]
            and all(
                (p is None) == (q is None) and (p is None or q is None or i - p == i + period - q or p == q)
                for (_, p), (_, q) in zip(wires[i], wires[i + period], strict=True)
            )
        )
        if alike and start is None:
            start = i
        elif not alike and start is not None:
            if (i - start) // period + 2 >= LEAST_GROUPS:  # the group before may join
                runs.append((start, i - start))
            start = None
    return runs


def _loop(sequence: list[Quantity], wires: list[list[Wire]], start: int, period: int, count: int) -> Loop | None:
    """The loop of `count` groups from `start` on, or None where the groups read each other in another way.

    The group before may be the first: it finds elsewhere what later groups find in the group before. So may the second
    be, where the first reads what is no group at all.
    """
    for begin, groups in ((start - period, count + 1), (start, count), (start + period, count - 1)):
        if begin >= 0 and groups >= LEAST_GROUPS and begin + groups * period <= len(sequence):
            made = _try_loop(sequence, wires, begin, period, groups)
            if made is not None:
                return made
    return None


def _try_loop(sequence: list[Quantity], wires: list[list[Wire]], start: int, period: int, count: int) -> Loop | None:
    groups = tuple(tuple(sequence[start + g * period + j] for j in range(period)) for g in range(count))
    if count < LEAST_SHIELDED and any(_shields(q) for q in groups[0]):
        return None
    if not any(isinstance(q, (Expect, Shifts)) for q in groups[0]):
        return None  # nothing costly: better fused than looped
    if any(_signature(a) != _signature(b) for a, b in zip(*groups[:2], strict=True)):
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
                initial = seen[0][0].quantity
                if first.setdefault(read.at, initial) is not initial or _shape(initial) != _shape(groups[0][read.at]):
                    return None
            row.append(read)
        reads.append(tuple(row))
    return Loop(groups, tuple(reads), first)


def _read(seen: list[Wire], start: int, period: int, j: int) -> Read | None:
    """How position j finds an operand that the groups read at `seen`; the first group may find it elsewhere."""
    operands = tuple(o for o, _ in seen)
    initial, first_place = seen[0]
    outside = first_place is None or first_place < start
    if all(o == initial for o in operands):
        return Read("fixed", operands=operands[:1]) if outside else None
    if all(place is None for _, place in seen[1:]):
        if not outside or any(o.side is None and getattr(o.quantity, "cross", False) for o in operands):
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


def _shields(quantity: Quantity) -> bool:
    """Does XLA compute it once anyway?"""
    return isinstance(quantity, Shifts) or (isinstance(quantity, Expect) and quantity.expectation.formula is None)


def _shape(quantity: Quantity) -> tuple[int, ...]:
    return quantity.shape  # type: ignore[attr-defined]


def _signature(quantity: Quantity) -> Any:
    """What an operation is, apart from which operands it reads."""
    skipped = ("operands", "node", "asked")
    own = tuple(getattr(quantity, f.name) for f in fields(quantity) if f.name not in skipped)
    sides = tuple((o.side, _shape(o.quantity)) for o in operands_of(quantity))
    return (type(quantity), own, sides, _computed(quantity.node) if isinstance(quantity, Data) else None)


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
