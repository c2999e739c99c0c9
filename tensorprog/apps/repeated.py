"""The repeated block of a network, found in its program: what each layer of a deep network does to the one before.

A vector through which everything goes on its way from the inputs to the output cuts the program in two. Between one such vector and
the next stands a piece of the program that reads nothing else, weights apart. Pieces in a row that are equal but for the names
of their weights are one block, applied over and over. Pieces are compared by writing them again over one name for what they
read and numbers for their weights: instructions are hash-consed, so that equal pieces become one object.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from tensorprog.errors import InputError, explain
from tensorprog.ir import (
    Input,
    LinComb,
    MatMul,
    Node,
    PositionMap,
    Program,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.structure import Structure

__all__ = ["Repeated", "repeated"]


@dataclass(frozen=True)
class Repeated:
    """Equal blocks in a row: the k-th makes `ends[k + 1]` of `ends[k]`, Gaussian vectors of one type."""

    ends: tuple[Node, ...]

    def network(self, blocks: int, moved: bool) -> Program:
        """x in R^2 with the Gram matrix 2 C, Gaussian vectors of covariance C, alike at all positions, blocks, a frozen readout of every
        position. moved: a trained shift of that vector, zero at the start."""
        kind = self.ends[0].type
        assert kind.width is not None
        flat = Type("vector", (math.prod(kind.shape), 1), 1, kind.width)
        one = Type("vector", (1, 1), 1, kind.width)
        x = Input("x", (2,), "float64")
        embedding = _weight("block.embedding", (1, kind.width), (2, None))
        made: Node = LinComb(((1 / math.sqrt(2.0), MatMul("ab,b->a", embedding, x)),))
        if moved:
            shift = replace(_weight("block.shift", (1, kind.width)), std=0.0, tangent_std=1.0)
            made = LinComb(((1.0, made), (1.0, shift)))
        made = PositionMap(position("reshape", to=(1, 1)), (made,), one)
        made = PositionMap(position("broadcast", to=flat.shape, axes=(0, 1)), (made,), flat)
        made = PositionMap(position("reshape", to=kind.shape), (made,), kind)
        for k in range(blocks):
            made = _written_again(self.ends[k], self.ends[k + 1], made, numbered=False)
        made = PositionMap(position("reshape", to=flat.shape), (made,), flat)
        readout = _weight("block.readout", (1, None), (1, kind.width))
        read = MatMul("ab,cb->ca", readout, made)
        return Program((x,), LinComb(((1 / math.sqrt(kind.width), read),)))


def _weight(name: str, *axes: tuple[int, Fraction | None]) -> Weight:
    """A frozen weight with axes of these sizes: finite ones, or with a width at unit width."""
    widths = tuple(width for _, width in axes)
    region = tuple((Fraction(0), Fraction(size) if width is None else width) for size, width in axes)
    return Weight(name, tuple(size for size, _ in axes), widths, 1.0, 0.0, region)


def repeated(program: Program) -> Repeated:
    """The longest row of equal blocks of a program.

    Raises InputError, with the reason, where there is none.
    """
    cuts = [node for node in _cuts(program) if node.type.width is not None]
    if len(cuts) < 3:
        raise _refusal(
            "what goes from one layer to the next is not one vector: layers read the inputs again (as steps of a recurrent net, or "
            "layers over a graph), or connections skip over layers"
        )
    pieces = [_piece(a, b) for a, b in pairwise(cuts)]
    facts = Structure([program.output])
    reason = (
        f"{len(cuts)} vectors cut the network in two, and no two of the pieces between them in a row are the same instructions, with "
        "weights of the same shapes and laws; layers that read the inputs again, or over which a connection skips, are no such pieces"
    )
    for start, period, length in _periodic(pieces):
        reason = _ELEMENTWISE
        for ends in _gaussian_ends(cuts[start : start + length + 1], period, facts):
            shared = _shared_weight(program, ends)
            if shared is None:
                return Repeated(ends)
            reason = (
                f"the weight {shared!r} of a block that repeats is used outside of it too, so that layers depend on it"
            )
    raise _refusal(reason)


_ELEMENTWISE = (
    "what repeats hands on no Gaussian vector: elementwise code stands between one weight's sum and the next (as a nonlinearity after a "
    "skip connection does), so that the law of the next layer takes more than variances and correlations"
)


def _refusal(reason: str) -> InputError:
    return InputError(
        explain(
            "Block: the network has no block that repeats",
            reason=reason,
            mend="follow the kernels themselves, apps.Layers(net, example); or give the block itself, as a function of a wide vector, "
            "apps.Block(lambda h: nn.dense(jnp.tanh(h)))",
        )
    )


def _cuts(program: Program) -> Iterator[Node]:
    """Nodes that everything from the inputs to the output goes through, in order.

    In an order of the program, a node is one exactly where no later node reads an earlier one past it.
    """
    from_inputs: set[Node] = set()
    order = []
    for node in topological([program.output]):
        if isinstance(node, Input) or any(o in from_inputs for o in operands(node)):
            from_inputs.add(node)
            order.append(node)
    last_read: dict[Node, int] = {}
    reach = -1
    for i, node in enumerate(order):
        last_read.update(dict.fromkeys((o for o in operands(node) if o in from_inputs), i))
        if isinstance(node, Input):
            reach = i
    for i, node in enumerate(order):
        if reach <= i:
            yield node
        reach = max(reach, last_read.get(node, i))


def _written_again(start: Node, end: Node, x: Node, *, numbered: bool) -> Node:
    """The piece of a program that makes `end` of `start`, reading x instead. numbered: its weights have numbers for names."""
    new, numbers = {start: x}, dict[str, str]()
    for node in topological([end], skip=lambda n: n is start):
        if isinstance(node, Weight) and numbered:
            new[node] = replace(node, name=numbers.setdefault(node.name, str(len(numbers))))
        else:
            new[node] = rebuild(node, [new[o] for o in operands(node)])
    return new[end]


def _piece(start: Node, end: Node) -> Node:
    """The piece between two cuts, the same object for equal pieces."""
    kind = start.type
    widths = tuple(kind.width if i == kind.axis else None for i in range(len(kind.shape)))
    return _written_again(start, end, Weight("start", kind.shape, widths, 1.0, 0.0, ()), numbered=True)


def _periodic(pieces: Sequence[Node]) -> Iterator[tuple[int, int, int]]:
    """(start, period, length) of stretches of at least two periods, longest first, then those of the shortest period."""
    found = []
    for period in range(1, len(pieces) // 2 + 1):
        start = 0
        for i in range(len(pieces) - period + 1):
            if i + period < len(pieces) and pieces[i] is pieces[i + period]:
                continue
            if i - start >= period:
                found.append((start, period, i - start + period))
            start = i + 1
    return iter(sorted(found, key=lambda run: (-run[2], run[1])))


def _gaussian_ends(cuts: Sequence[Node], period: int, facts: Structure) -> list[tuple[Node, ...]]:
    """Where a periodic stretch can be cut, so that Gaussian vectors go from block to block: best before elementwise code, and where
    no two blocks share a weight."""
    found = []
    for offset in range(period):
        ends = tuple(cuts[offset::period])
        if len(ends) < 3 or not all(facts[node].gaussian for node in ends):
            continue
        if len({_piece(a, b) for a, b in pairwise(ends)}) == 1 and (names := _weights(*ends[:2])):
            after = offset + 1 < len(cuts) and facts[cuts[offset + 1]].gaussian
            found.append((bool(names & _weights(*ends[1:3])), after, ends))
    return [ends for _, _, ends in sorted(found, key=lambda f: f[:2])]


def _weights(start: Node, end: Node) -> set[str]:
    """The names of the weights in a piece."""
    return {node.name for node in topological([end], skip=lambda n: n is start) if isinstance(node, Weight)}


def _shared_weight(program: Program, ends: Sequence[Node]) -> str | None:
    """A weight of the blocks that the rest of the network, or some of the blocks, use too: their vectors are not new to it. One that
    all blocks share is left to the comparison of two in a row."""
    uses = Counter(name for pair in pairwise(ends) for name in _weights(*pair))
    if some := [name for name, count in uses.items() if 1 < count < len(ends) - 1]:
        return some[0]
    blocks: set[Node] = set()
    own: dict[Node, str] = {}  # what is made of weights inside, and the name of one
    for start, end in pairwise(ends):
        for node in topological([end], skip=lambda n, start=start: n is start):  # type: ignore[misc]
            blocks.add(node)
            names = [own[o] for o in operands(node) if o in own and o is not start]
            if isinstance(node, Weight) or names:
                own[node] = node.name if isinstance(node, Weight) else names[0]
    for node in program.nodes:
        shared = [own[o] for o in operands(node) if o in own and o not in ends] if node not in blocks else []
        if shared:
            return shared[0]
    return None
