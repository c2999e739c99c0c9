"""Networks of more blocks than a program has: the block that repeats in its instructions, written once more, or less often.

The search is that for the recursion of a kernel graph (`tensorprog.apps.recursion`), over instructions. A weight that each block has of its
own is another one in a further block; one that blocks share stays the same. What a block reads of the inputs beside that (a step of a
sequence) is, past the last block, what the last one read. Nothing is assumed of what a program means, so that this holds for weights that all
blocks share, expectations over whole fields, gates, and averages; the kernel of the longer program is derived anew.

That it is the user's own network is checked: with as many blocks as it has, what is written must be its program again, names apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from tensorprog.apps.alike import follows
from tensorprog.apps.readouts import read_out
from tensorprog.apps.recursion import Recursion, recursion
from tensorprog.ir import LinComb, Node, Program, Weight, operands, topological
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.methods import prepared

__all__ = ["NUDGE", "Growth", "growth"]

NUDGE = "nudge of the state"  # a name that no parameter can have

Region = tuple[tuple[Fraction, Fraction], ...]


@dataclass(frozen=True)
class Growth:
    """A program whose block is written as often as is asked for."""

    program: Program
    found: Recursion

    @property
    def blocks(self) -> int:
        """How many blocks the program has."""
        return self.found.blocks

    def of(self, blocks: int) -> Program:
        """The program with so many blocks, one or more."""
        return replace(self.program, output=self.written(blocks)[0])

    def written(self, blocks: int) -> tuple[Node, list[Node]]:
        """The output, and the state after the last block."""
        found = self.found
        values = {"state": [v for v, _ in found.starts], "fixed": [v for v, _ in found.fixed]}
        rows = [[v for v, _ in row] for row in found.given]
        own = lambda kind, here, places: tuple({**values, kind: here}[p.kind][p.at] for p in places)
        before = values["state"]
        for k in range(blocks):
            if len(rows) <= k:
                rows.append([self._next_row(rows, i) for i in range(len(rows[0]))])
            values["given"] = rows[k]
            here: list[Node] = []
            for (node, _), places in zip(found.block, found.reads, strict=True):
                again = replace(node, name=f"{node.name}.{k}") if isinstance(node, Weight) else node
                here.append(rebuild(again, own("here", here, places)) if places else again)
            before = values["state"]
            values["here"] = here
            values["state"] = list(own("here", here, found.state))
        last, values["state"] = values["state"], before
        ends: list[Node] = []
        for (node, _), places in zip(found.ends, found.end_reads, strict=True):
            ends.append(rebuild(node, own("end", ends, places)))
        return own("end", ends, found.roots)[0], last

    def read_out(self, blocks: int) -> Program:
        """The program with so many blocks, with a readout of what the last one hands on in the place of its output."""
        output, state = self.written(blocks)
        vectors = [node for node in state if node.type.kind == "vector"]
        return prepared(read_out(replace(self.program, output=output), vectors))

    def nudged(self, factor: float = 1.0) -> Growth | None:
        """The same blocks, after parameters that are added to the state before the first one: they start at zero, and all are trained that are
        called `NUDGE`. factor: of that state. None where the state has no vectors."""
        starts = [(_nudged(v, i, factor), where) for i, (v, where) in enumerate(self.found.starts)]
        if all(new is old for (new, _), (old, _) in zip(starts, self.found.starts, strict=True)):
            return None
        return replace(self, found=replace(self.found, starts=tuple(starts)))

    @cached_property
    def _lags(self) -> list[int | None]:
        """Of each thing that a block reads, the place in which the block before read it."""
        rows = self.found.given
        places = range(len(rows[0]))
        follows = lambda i, j: all(after[i] == before[j] for before, after in pairwise(rows))
        return [next((j for j in places if j != i and follows(i, j)), None) for i in places]

    def _next_row(self, rows: Sequence[Sequence[Node]], i: int) -> Node:
        lag = self._lags[i]
        return rows[-1][i if lag is None else lag]

    @property
    def holds(self) -> bool:
        """Does it write the program that it was found in, and is what a further block reads known? (Numbers that change from block to block
        have no next one; the inputs' last step stands for those to come.)"""
        for i, column in enumerate(zip(*self.found.given, strict=True)):
            if self._lags[i] is None and column[-1] != column[-2] and not follows(column[-1], column[-2]):
                return False
        if self.blocks == 2 and any(place.kind == "state" for places in self.found.end_reads for place in places):
            return False  # the output reads both blocks: those two, or all that there are?
        return _nameless(self.of(self.blocks)) is _nameless(self.program)


def _nudged(node: Node, i: int, factor: float) -> Node:
    kind = node.type
    if kind.kind != "vector" or kind.axis is None or isinstance(node, Weight):
        return node
    widths = tuple(kind.width if axis == kind.axis else None for axis in range(len(kind.shape)))
    region = tuple((Fraction(0), width or Fraction(n)) for width, n in zip(widths, kind.shape, strict=True))
    return LinComb(((factor, node), (1.0, Weight(f"{NUDGE}.{i}", kind.shape, widths, 0.0, 1.0, region))))


def growth(program: Program) -> Growth | None:
    """The way to more blocks of a program; None where no block stands twice in it."""
    found = recursion([(program.output, None)], lambda found: Growth(program, found).holds)
    return None if found is None else Growth(program, found)


def _nameless(program: Program) -> Node:
    """The output of a program, prepared, over weights numbered by where they are first read; factors without their last digits."""
    output = _rewritten(prepared(program).output, _opened)
    order = list(topological([output]))
    parts: dict[str, list[Weight]] = {}
    for node in order:
        if isinstance(node, Weight):
            parts.setdefault(node.name, []).append(node)
    whole = {name for name, own in parts.items() if not _apart([w.region for w in own])}
    numbers: dict[object, str] = {}

    def nameless(node: Node) -> Node:
        if isinstance(node, Weight):
            kept = node.name in whole  # its parts have entries in common: where they lie counts
            key = node.name if kept else (node.name, node.region)
            name = numbers.setdefault(key, str(len(numbers)))
            return replace(node, name=name, region=node.region if kept else ())
        if isinstance(node, LinComb):
            return LinComb(tuple((a if isinstance(a, Node) else float(f"{a:.12g}"), x) for a, x in node.terms))
        return node

    return _rewritten(output, nameless)


def _rewritten(output: Node, change: Callable[[Node], Node]) -> Node:
    new: dict[Node, Node] = {}
    for node in topological([output]):
        new[node] = change(rebuild(node, [new[o] for o in operands(node)]) if operands(node) else node)
    return new[output]


def _opened(node: Node) -> Node:
    """A sum whose terms are no multiples."""
    if not isinstance(node, LinComb):
        return node
    terms: list[tuple[float | Node, Node]] = []
    for a, x in node.terms:
        if isinstance(x, LinComb) and len(x.terms) == 1 and not isinstance(a, Node):
            b, y = x.terms[0]
            terms.append((a * b, y) if not isinstance(b, Node) and y.type == x.type else (a, x))
        else:
            terms.append((a, x))
    return LinComb(tuple(terms))


def _apart(regions: Sequence[Region]) -> bool:
    """Do parts of one parameter have no entry in common?"""
    meet = lambda a, b: all(first[0] < second[1] and second[0] < first[1] for first, second in zip(a, b, strict=True))
    return not any(meet(a, b) for i, a in enumerate(regions) for b in regions[:i])
