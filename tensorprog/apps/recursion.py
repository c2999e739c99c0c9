"""The recursion of a kernel graph: what each layer of a deep network does to the kernels of the layer before. Or that of a program: what
each layer does to the vectors of the layer before.

Quantities of one layer are those of the layer below it, computed by the same operations from the same operands but for what the layer
below them made. So two quantities of one kind are laid on each other, and after them their operands, pair by pair: this shift by
one layer ends where the operands are the same ones (the inputs, read again by every layer) or are of different kinds (where the
recursion begins). Quantities that are above no other are the block; those of the layer below that it reads are the state.

Nothing is said here of what a quantity means, so that the state may be any: covariances of one hidden vector or of several, at all pairs of
their positions, means, tangent kernels, values of a population of neurons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from tensorprog.apps.alike import (
    Vertex,
    family_of,
    is_input,
    kind_of,
    made_by_layers,
    nearly,
    operands_at,
    rescaled,
    same,
    shape_of,
)
from tensorprog.ir import Input, Node, Weight

__all__ = ["Place", "Recursion", "recursion", "vertices"]

Slot = tuple[Vertex, int]  # a quantity of the block, and how many layers below

STARTS, PARTNERS = 80, 8  # how many quantities, and partners of each, are tried


@dataclass(frozen=True)
class Place:
    """Where an operand is found. kind: "here" (a quantity of the block), "state" (an entry of the state before the block), "given" (what this
    block alone reads), "fixed" (the same for all blocks), or "end" (a quantity after the last block); at: which."""

    kind: str
    at: int


Places = tuple[Place, ...]


@dataclass(frozen=True)
class Recursion:
    """A block of quantities that computes a state from the state before, and what is made of the last one.

    block: its quantities, operands first; reads: where each finds its operands. state: the entries after a block, in the block or in the
    state before it. starts: the entries before the first block. given: for each block, from the first on, what it alone reads. fixed:
    what all blocks read. ends: what the roots are made of after the last block, operands first; roots: where they are found.
    "state" is for ends, too, the state before the last block, and "given" what that block read.
    """

    block: tuple[Vertex, ...]
    reads: tuple[Places, ...]
    state: Places
    starts: tuple[Vertex, ...]
    given: tuple[tuple[Vertex, ...], ...]
    fixed: tuple[Vertex, ...]
    ends: tuple[Vertex, ...]
    end_reads: tuple[Places, ...]
    roots: Places
    entries: tuple[Vertex, ...]  # of the state, as quantities of the block

    @property
    def blocks(self) -> int:
        """How many blocks stand in a row."""
        return len(self.given)

    def needed(self, root: int) -> set[int]:
        """The entries of the state that a root depends on, after any number of blocks."""
        rows = {"here": self.reads, "end": self.end_reads, "state": [(p,) for p in self.state]}
        seen: set[Place] = set()
        rest = [self.roots[root]]
        while rest:
            place = rest.pop()
            if place not in seen and place.kind in rows:
                seen.add(place)
                rest.extend(rows[place.kind][place.at])
        return {place.at for place in seen if place.kind == "state"}

    @property
    def size(self) -> int:
        """How many quantities there are to compute, one block counted once."""
        return len(self.block) + len(self.ends) + len(vertices([*self.starts, *self.fixed, *chain(*self.given)]))


def vertices(roots: Iterable[Vertex], stop: Callable[[Vertex], bool] = lambda v: False) -> list[Vertex]:
    """Everything that the roots need, operands first; what `stop` says is not entered."""
    done: dict[Vertex, None] = {}
    for root in roots:
        stack = [(root, iter(() if stop(root) else operands_at(root)))] if root not in done else []
        while stack:
            vertex, rest = stack[-1]
            following = next((o for o in rest if o not in done), None)
            if following is None:
                done[vertex] = None
                stack.pop()
            else:
                stack.append((following, iter(() if stop(following) else operands_at(following))))
    return list(done)


def recursion(roots: Sequence[Vertex], accept: Callable[[Recursion], bool] = lambda found: True) -> Recursion | None:
    """The recursion that leads to the roots and leaves the least to be written out; None where nothing repeats twice.

    accept: says no to one that is not to be taken.
    """
    search = _Search(roots, accept)
    best: Recursion | None = None
    pairs: list[tuple[Vertex, Vertex]] = []
    others = [(roots[0], v) for v in search.partners(roots[0])[:2]]  # one root may stand beside the layers of the other
    for above in search.tops:
        for below in search.partners(above):
            first = [(above, below)]
            for tried in (first, *([*first, other] for other in others)):
                found = search.recursion(tried)
                if found is not None and (best is None or found.size < best.size):
                    best, pairs = found, tried
    rest = None if best is None else list(reversed(best.ends))
    while best is not None and rest:  # what comes after the last block may be of the same kind as what is in it
        above = rest.pop(0)
        for below in search.partners(above):
            found = search.recursion([*pairs, (above, below)])
            if found is not None and found.size < best.size:
                best, pairs, rest = found, [*pairs, (above, below)], list(reversed(found.ends))
                break
    return best


class _Search:
    """Lays quantities on each other, and reads off recursions."""

    def __init__(self, roots: Sequence[Vertex], accept: Callable[[Recursion], bool]):
        self.roots, self._accept = roots, accept
        order = vertices(roots)
        self.kinds = {v: kind_of(v) for v in order}
        self.plain: set[Vertex] = set()  # without layers: made of the inputs alone, or of no input at all
        self.numbers: set[Vertex] = set()  # instructions that read no input and no weight: blocks are given them
        constant: set[Vertex] = set()
        self._levels: dict[Vertex, int] = {}
        self._alike: dict[object, list[Vertex]] = {}
        for v in order:
            below = operands_at(v)
            self._levels[v] = 1 + max((self._levels[o] for o in below), default=0)
            if all(o in constant for o in below) and not is_input(v):
                constant.add(v)
            number = isinstance(v[0], Node) and not isinstance(v[0], (Input, Weight))
            if number and all(o in self.numbers for o in below):
                self.numbers.add(v)
            if v in constant or (not made_by_layers(v) and all(o in self.plain for o in below)):
                self.plain.add(v)
            if below:
                self._alike.setdefault(family_of(v), []).append(v)
        self.tops = [v for v in reversed(order) if operands_at(v)][:STARTS]

    def partners(self, above: Vertex) -> list[Vertex]:
        """Quantities of the same kind from lower layers, the nearest first."""
        lower = [v for v in self._alike.get(family_of(above), []) if self._levels[v] < self._levels[above]]
        lower = [v for v in lower if self._match(above, v)]
        return sorted(lower, key=lambda v: -self._levels[v])[:PARTNERS]

    def recursion(self, pairs: Sequence[tuple[Vertex, Vertex]]) -> Recursion | None:
        """The recursion in which the first of each pair is laid on the second, if there is one."""
        shift = self._shift(pairs)
        if shift is None:
            return None
        images = set(shift.values())
        block = [v for v in vertices([above for above, _ in pairs]) if v in shift and v not in images]
        layers = [block]  # the same quantities, layer by layer downwards
        while all(v in shift for v in layers[-1]):
            layers.append([shift[v] for v in layers[-1]])
        while len(layers) > 1 and not all(_like(block, layer) for layer in layers[1:]):
            layers.pop()
        found = _Builder(self, block, layers, shift).build() if len(layers) > 1 else None
        return found if found is not None and self._accept(found) else None

    def _shift(self, pairs: Sequence[tuple[Vertex, Vertex]]) -> dict[Vertex, Vertex] | None:
        """Each quantity that is laid on another, beginning with these; None where one would lie on two."""
        shift: dict[Vertex, Vertex] = {}
        stack = list(pairs)
        while stack:
            u, v = stack.pop()
            if u == v or u in self.numbers or not self._match(u, v):
                continue
            if u in shift:
                if shift[u] != v:
                    return None
                continue
            shift[u] = v
            stack.extend(zip(operands_at(u), operands_at(v), strict=True))
        return shift

    def _match(self, u: Vertex, v: Vertex) -> bool:
        """Are they of the same kind? The first block's sums may have what stands in the inputs with another factor."""
        if self.kinds[u] == self.kinds[v]:
            return True
        different = nearly(u, v)
        return different is not None and all(o in self.plain for o in different)


def _like(first: list[Vertex], other: list[Vertex]) -> bool:
    """Do the quantities of two layers read each other in the same way? Where the recursion begins or ends, some may be of the same kind
    and made of something else."""
    places, others = ({v: i for i, v in enumerate(layer)} for layer in (first, other))
    return all(
        places.get(a) == others.get(b)
        for u, v in zip(first, other, strict=True)
        for a, b in zip(operands_at(u), operands_at(v), strict=True)
    )


class _Builder:
    """Puts a recursion together; `build` gives None where the layers are no recursion after all."""

    def __init__(self, search: _Search, block: list[Vertex], layers: list[list[Vertex]], shift: dict[Vertex, Vertex]):
        self.search, self.block, self.layers = search, block, layers
        self.here = {v: i for i, v in enumerate(block)}
        self.below: dict[Vertex, Slot | None] = {}
        for depth, layer in enumerate(layers[1:], 1):
            for v, head in zip(layer, block, strict=True):
                self.below[v] = (head, depth) if v not in self.below else None  # of two quantities: no place
        self.starts: dict[Slot, Vertex] = {}
        self.given: list[tuple[Vertex, ...]] = []  # of each, its vertices from the lowest block up
        self.fixed: dict[Vertex, int] = {}

    def build(self) -> Recursion | None:
        reads = []
        for i in range(len(self.block)):
            places = self._places(i)
            if places is None:
                return None
            reads.append(places)
        slots = list(self.starts)
        if not slots or not all(depth == 1 or (head, depth - 1) in self.starts for head, depth in slots):
            return None
        ended = self._ended()
        begun = set(vertices(self.starts.values()))
        if ended is None or not all(
            v in self.search.plain or v in begun or not self._layered(v, begun) for v in self.fixed
        ):
            return None
        before = {slot: n for n, slot in enumerate(slots)}
        after = tuple(
            Place("here", self.here[head]) if depth == 1 else Place("state", before[head, depth - 1])
            for head, depth in slots
        )
        rows = tuple(tuple(row[k] for row in self.given) for k in range(len(self.layers)))
        return Recursion(
            tuple(self.block), tuple(reads), after, tuple(self.starts.values()), rows, tuple(self.fixed), *ended,
            tuple(head for head, _ in slots),
        )  # fmt: skip

    def _place_of(self, vertex: Vertex, last: bool = False) -> Place:
        """The same for all blocks, or after the last one what it has read too."""
        if last and vertex in (tops := [row[-1] for row in self.given]):
            return Place("given", tops.index(vertex))
        return Place("fixed", self.fixed.setdefault(vertex, len(self.fixed)))

    def _places(self, i: int) -> Places | None:
        """Where a quantity of the block finds its operands, in every block."""
        found = []
        for k, operand in enumerate(operands_at(self.block[i])):
            seen = [rescaled(layer[i], k, self.block[i]) for layer in self.layers]
            slot = self.below.get(operand)
            if operand in self.here:
                found.append(Place("here", self.here[operand]))
            elif all(v == operand for v in seen):
                found.append(self._place_of(operand))
            elif len({shape_of(v) for v in seen}) > 1:
                return None
            elif slot is not None:
                if not self._follows(slot, seen):
                    return None
                found.append(Place("state", list(self.starts).index(slot)))
            elif any(self._layered(v) for v in seen):
                return None  # neither the state nor what stands in the inputs
            else:
                found.append(Place("given", len(self.given)))
                self.given.append(tuple(reversed(seen)))
        return tuple(found)

    def _layered(self, vertex: Vertex, known: Collection[Vertex] = ()) -> bool:
        """Has it layers in it that are not among those known?"""
        inside = vertices([vertex], known.__contains__)
        return any(made_by_layers(v) and v not in self.search.plain for v in inside if v not in known)

    def _holds_layers(self, ends: Sequence[Vertex]) -> bool:
        """Are there blocks after the last one, or read from before the first? A network of one more block would have one more of these
        too, as where an output adds up readouts of all layers; then this is not its recursion."""
        costly = lambda order: Counter(self.search.kinds[v] for v in order if made_by_layers(v))
        own = costly(self.block)
        read = {o for v in ends for o in operands_at(v) if o not in self.search.plain and o not in self.here}
        before = costly(o for o in read if o not in self.below and o not in ends)
        return any(count > own[kind] > 0 for kind, count in costly(ends).items()) or any(own[kind] for kind in before)

    def _follows(self, slot: Slot, seen: Sequence[Vertex]) -> bool:
        """Do all blocks read an entry of the state where it is said to be? What the lowest reads is where it starts."""
        head, depth = slot
        rows = [layer[self.here[head]] for layer in self.layers]
        follows = all(v == rows[k + depth] for k, v in enumerate(seen) if k + depth < len(rows))
        return follows and same(self.starts.setdefault(slot, seen[-1]), seen[-1])

    def _ended(self) -> tuple[tuple[Vertex, ...], tuple[Places, ...], Places] | None:
        """What the roots are made of after the last block; None where they read layers further down."""
        slots = {slot: n for n, slot in enumerate(self.starts)}
        in_state = lambda v: v in self.below and self.below[v] in slots
        made: dict[Vertex, Place] = {}
        ends: list[Vertex] = []
        reads = []
        order = vertices(self.search.roots, lambda v: v in self.here or in_state(v))
        for v in order:
            if v in self.here:
                made[v] = Place("here", self.here[v])
            elif in_state(v):
                made[v] = Place("state", slots[self.below[v]])  # type: ignore[index]
            elif any(o in made for o in operands_at(v)):
                made[v] = Place("end", len(ends))
                ends.append(v)
                reads.append(tuple(made[o] if o in made else self._place_of(o, last=True) for o in operands_at(v)))
            if v in self.below and not in_state(v):
                return None
        if self._holds_layers(ends):
            return None
        return (
            tuple(ends),
            tuple(reads),
            tuple(made[v] if v in made else self._place_of(v, last=True) for v in self.search.roots),
        )
