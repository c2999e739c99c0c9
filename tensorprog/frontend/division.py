"""How the uses of a parameter agree on what its width axes are: positions times coordinates, or parts beside each other.

A weight (n, 64 n) may multiply a flattened field of 64 positions, while its transpose makes a vector of 64 n coordinates; or it may
multiply two vectors that stand beside each other, and one that is whole. As a tensor program it is one matrix for each position, or
for each part, and then every use has to see it so: coordinate 5 n + a of the whole vector is coordinate a at position 5. That is known
only when all uses are; so a network whose uses differ is read once more (`frontend.interpret`), with divisions that its uses agree on.

A division has an order: of (8, n) flattened, positions stand before coordinates, of (n, 8) behind. A weight that sees both orders pairs
every coordinate with others, so that no tensor program with one matrix describes it, and is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from tensorprog.frontend.values import Axis, Division, Key, Value, Var
from tensorprog.ir import MatMul, Node, Weight, operands, topological

__all__ = ["MOST_CUT", "Redo", "Settled", "borders", "common", "differing", "division_of", "finer_by", "finer_origins"]

MOST_POSITIONS = 4096  # of a divided axis: covariances are arrays over pairs of them
MOST_PARTS = 4  # beside each other; more of one width are positions
MOST_CUT = 8  # positions that are parts, known to be independent, where one use has some of them only


class Redo(Exception):
    """The network has to be read once more. wanted: divisions of parameters' axes. finer: how many positions before and behind the
    coordinates are to be split off these axes. apart: symmetric weights to be read as a matrix and its transpose."""

    def __init__(
        self,
        wanted: Mapping[Key, Division] | None = None,
        finer: Mapping[Key, Division] | None = None,
        apart: Iterable[str] = (),
    ):
        super().__init__("read once more")
        self.wanted, self.finer, self.apart = dict(wanted or {}), dict(finer or {}), frozenset(apart)


@dataclass(frozen=True)
class Settled:
    """What the readings so far have settled, and how each axis is multiplied in this one."""

    divisions: Mapping[Key, Division] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    uses: dict[Key, dict[Axis, None]] = field(default_factory=dict)

    def after(self, redo: Redo) -> Settled | None:
        """With what was asked for; None where that says nothing new, or asks for too much."""
        made = dict(self.divisions) | redo.wanted
        for key, by in redo.finer.items():
            old = made.get(key, Division())
            if old.parts:
                return None
            made[key] = Division(old.before * by.before, old.behind * by.behind)
        if made == self.divisions and redo.apart <= self.apart:
            return None
        if any(d.before * d.behind > MOST_POSITIONS for d in made.values()):
            return None
        return Settled(made, self.apart | redo.apart)


def division_of(axis: Axis) -> Division:
    """The division that a flattened axis has."""
    place = next(i for i, f in enumerate(axis) if isinstance(f, Fraction))
    sizes = [f if isinstance(f, int) else 1 for f in axis]
    return Division(math.prod(sizes[:place]), math.prod(sizes[place:]))


def common(a: Division, b: Division, size: Fraction) -> Division | None:
    """The coarsest division finer than both, of an axis of `size` times n; None where their orders differ."""
    if a.parts or b.parts:
        return _common_parts(a, b, size)
    finer = lambda one, other: one.before % other.before == 0 and one.behind % other.behind == 0
    if not (finer(a, b) or finer(b, a)) and (a.behind, b.behind) != (1, 1) and (a.before, b.before) != (1, 1):
        return None
    return Division(math.lcm(a.before, b.before), math.lcm(a.behind, b.behind))


def borders(division: Division, size: Fraction) -> tuple[Fraction, ...]:
    """Where one position of a divided axis ends and the next begins."""
    return tuple(size * k / division.before for k in range(1, division.before))


def _common_parts(a: Division, b: Division, size: Fraction) -> Division | None:
    """Parts stay parts where there are few or unequal ones; beside positions, and where they are many, they are positions."""
    if a.behind * b.behind > 1:
        return None
    for parts, other in ((a, b), (b, a)):  # what is parts already stays that
        if parts.parts and other != Division() and {*other.parts, *borders(other, size)} <= set(parts.parts):
            return parts
    cuts, before = sorted({*a.parts, *b.parts}), math.lcm(a.before, b.before)
    ends = [Fraction(0), *cuts, size]
    gaps = {stop - start for start, stop in itertools.pairwise(ends)}
    if before == 1 and (len(gaps) > 1 or len(cuts) < MOST_PARTS):
        return Division(parts=tuple(cuts))
    widths = [size / before, *gaps]
    least = math.lcm(*(w.denominator for w in widths))
    return Division(int(size * least / math.gcd(*(int(w * least) for w in widths))))


def origins(nodes: Iterable[Node]) -> set[Key]:
    """The axes of parameters whose coordinates those of these vectors are."""
    found: set[Key] = set()
    leaf = lambda node: isinstance(node, (MatMul, Weight)) or node.type.kind != "vector" or node.type.width is None
    for root in nodes:
        for node in [root] if leaf(root) else [o for n in topological([root], skip=leaf) for o in operands(n)]:
            if node.type.kind != "vector" or node.type.axis is None or node.type.width is None:
                continue
            if isinstance(node, Weight):
                found.add((node.name, node.type.axis))
            elif isinstance(node, MatMul):
                letters = node.letters
                found.add((node.root.name, letters[0].index(letters[2][node.type.axis])))
    return found


def finer_origins(nodes: Iterable[Node], by: Division) -> Redo:
    """The axes of parameters that these vectors have their coordinates from are to be divided by so much more."""
    return Redo(finer=dict.fromkeys(origins(nodes), by))


def finer_by(fine: Division, coarse: Division) -> Division:
    """How many positions more one division has than another."""
    return Division(fine.before // coarse.before, fine.behind // coarse.behind)


def differing(values: Iterable[Value], settled: Settled) -> Redo | None:
    """What is to be settled for the uses of all parameters to agree; None where they do, or where nothing can be."""
    roots = [node for value in values if isinstance(value, Var) for _, node in value.blocks]
    weights: dict[str, list[Weight]] = {}
    for node in topological(roots):
        if isinstance(node, Weight):
            weights.setdefault(node.name, []).append(node)
    wanted: dict[Key, Division] = {}
    apart: set[str] = set()
    for name, found in weights.items():
        if not any(_overlap(a, b) for a, b in itertools.combinations(found, 2)):
            continue
        if len({weight.symmetric for weight in found}) > 1:
            apart.add(name)
        for axis, width in enumerate(found[0].widths):
            if width is not None and (made := _agreed(name, axis, found, settled)) is not None:
                wanted[name, axis] = made
    redo = Redo(wanted, {}, apart)
    return None if settled.after(redo) is None else redo


def _overlap(a: Weight, b: Weight) -> bool:
    return all(start < end and begin < stop for (start, stop), (begin, end) in zip(a.region, b.region, strict=True))


def _agreed(name: str, axis: int, found: list[Weight], settled: Settled) -> Division | None:
    """The division of an axis that all weights of a name can have."""
    size = max(weight.region[axis][1] for weight in found)
    made: Division | None = settled.divisions.get((name, axis), Division())
    cuts = {end for weight in found for end in weight.region[axis]} - {Fraction(0), size}
    if made is not None and not (made.before > 1 and all((end * made.before / size).denominator == 1 for end in cuts)):
        made = common(made, Division(parts=tuple(sorted(cuts))), size) if cuts else made
    for used in settled.uses.get((name, axis), {}):
        made = None if made is None else common(made, division_of(used), size)
    return made
