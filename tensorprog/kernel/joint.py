"""From several outputs and their tangents to one kernel graph: a block for every pair that is asked for.

All blocks are asked of the same rules with one memory, so that what they share is made once. A question between two
variables is the same as between one variable and itself: E[u v], axis by axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tensorprog.ir import LinComb, MatMul, Node, PositionMap, Weight
from tensorprog.kernel.adjoint import gradient_kernel
from tensorprog.kernel.graph import Quantity, Zero, quantities
from tensorprog.kernel.questions import LETTERS, Mean, Question, Second, Value, answer, answered
from tensorprog.kernel.rules import Rules
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.structure import Structure

__all__ = ["Block", "BlockGraph", "Gradients", "NoBlock", "Pair", "Side", "derive_blocks", "same_copies"]


@dataclass(frozen=True)
class Side:
    """One side of a block. copies: the axes of which every entry has the same law and those of different places are independent.
    finite: is it a readout, rather than a vector over the width?"""

    node: Node
    copies: tuple[int, ...]
    finite: bool

    @property
    def own(self) -> tuple[int, ...]:
        """The axes that a kernel has."""
        return tuple(i for i, n in enumerate(self.node.type.shape) if n > 1 and i not in self.copies)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.node.type.shape[i] for i in self.own)


@dataclass(frozen=True)
class NoBlock:
    """A block that is zero, of two sides of these shapes."""

    left: tuple[int, ...]
    right: tuple[int, ...]


@dataclass(frozen=True)
class Gradients:
    """The two sides of a tangent kernel by their adjoint programs. only: the part of this parameter."""

    left: Adjoint
    right: Adjoint
    only: str | None = None


Pair = tuple[Side, Side] | Gradients | NoBlock


@dataclass(frozen=True)
class Block:
    """E[u(x) v(x')] for two inputs (`cross`) and for one (`own`): arrays of which `first` takes the first of identical copies,
    with the axes of u and then those of v, `right` in number."""

    cross: Quantity
    own: Quantity
    first: tuple[int | slice, ...]
    shape: tuple[int, ...]
    right: int


@dataclass(frozen=True)
class BlockGraph:
    """What is to be computed. means: E[u] of variables of one input, with axes of their shapes. noise: is anything drawn anew for
    every input? answers: the questions that each quantity answers, for the reader."""

    blocks: tuple[Block, ...]
    means: tuple[Quantity, ...]
    noise: bool
    answers: Mapping[Quantity, Sequence[Question]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def nodes(self) -> tuple[Quantity, ...]:
        """Every quantity, operands first."""
        return tuple(quantities([*(q for b in self.blocks for q in (b.cross, b.own)), *self.means]))


def derive_blocks(
    pairs: Sequence[Pair], means: Sequence[Node], noise: bool, tolerance: float | None, apart: bool = True
) -> BlockGraph:
    """Ask the rules for all blocks and means. pairs: of two sides, or of gradients; or shapes, for a block that is zero. tolerance, apart: as
    for `tensorprog.kernel.derive`."""
    rules = Rules(Structure([*(node for pair in pairs for node in _variables(pair)), *means]), tolerance, apart)
    memo: dict[Question, Quantity] = {}
    blocks = [_made(pair, rules, memo) for pair in pairs]
    asked = tuple(answer(Value(m) if m.type.kind == "scalar" else Mean(m), rules, memo) for m in means)
    return BlockGraph(tuple(blocks), asked, noise, answered(memo))


def _variables(pair: Pair) -> Iterator[Node]:
    match pair:
        case Gradients(left=left, right=right):
            yield from (*left.nodes, *right.nodes)
        case (u, v):
            yield from (u.node, v.node)


def _made(pair: Pair, rules: Rules, memo: dict[Question, Quantity]) -> Block:
    match pair:
        case NoBlock(left=left, right=right):
            return _zero(left, right)
        case Gradients(left=left, right=right, only=only):
            cross, own = (gradient_kernel(left, right, where, rules, memo, only) for where in (True, False))
            return Block(cross, own, (), (*left.lead, *right.lead), len(right.lead))
        case (u, v):
            return _block(u, v, rules, memo)


def _block(u: Side, v: Side, rules: Rules, memo: dict[Question, Quantity]) -> Block:
    shape = (*u.shape, *v.shape)
    if u.finite != v.finite:  # one neuron has a share of 1/sqrt(n) in a readout
        return _zero(u.shape, v.shape)
    if u.finite and rules.facts.independent(u.node, v.node):
        return _zero(u.shape, v.shape)
    letters = iter(LETTERS)
    copies = [next(letters) for _ in u.copies]
    left = _letters(u, copies, [next(letters) for _ in u.own])
    right = _letters(v, copies, [next(letters) for _ in v.own])
    names: dict[str, str] = {"1": "1"}
    for c in left + right:
        names.setdefault(c, LETTERS[len(names) - 1])
    swap = lambda text: "".join(names[c] for c in text)
    kept = [c for c in names if c != "1"]
    ask = lambda cross: Second(u.node, v.node, cross, swap(left), swap(right), swap("".join(kept)))
    first = tuple(0 if c in copies else slice(None) for c in kept)
    return Block(answer(ask(True), rules, memo), answer(ask(False), rules, memo), first, shape, len(v.shape))


def _zero(left: tuple[int, ...], right: tuple[int, ...]) -> Block:
    zero = Zero((*left, *right))
    return Block(zero, zero, (), zero.shape, len(right))


def _letters(side: Side, copies: Sequence[str], own: Sequence[str]) -> str:
    at = dict(zip(side.copies, copies, strict=True)) | dict(zip(side.own, own, strict=True))
    return "".join(at.get(i, "1") for i in range(len(side.node.type.shape)))


# ------------------------------------------------------------------------------------------ copies


def same_copies(outputs: Sequence[tuple[Node, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """The axes of readouts along which their entries are copies jointly: the i-th entry of one is independent of the j-th of another.

    outputs: readouts, and the axes of each that hold copies by itself. Two readouts that share a weight must run along the same axes
    of it, in the same order; otherwise an axis counts as one of different entries.
    """
    origins = [[_origin(node, axis) for axis in axes] for node, axes in outputs]
    weights = [_weights(node) for node, _ in outputs]
    kept = [list(range(len(axes))) for _, axes in outputs]
    changed = True
    while changed:
        changed = False
        for a in range(len(outputs)):
            for b in range(len(outputs)):
                shared = weights[a] & weights[b]
                if a == b or not shared:
                    continue
                mine, other = (
                    [{w: i for w, i in origins[c][k].items() if w in shared} for k in kept[c]] for c in (a, b)
                )
                if mine != other or any(len(o) != len(shared) for o in mine):
                    for k in (a, b):
                        changed |= bool(kept[k])
                        kept[k] = []
    return [tuple(axes[k] for k in keep) for (_, axes), keep in zip(outputs, kept, strict=True)]


def _weights(node: Node) -> frozenset[Weight]:
    """The weights at the surface of a readout."""
    match node:
        case Weight():
            return frozenset([node])
        case MatMul():
            return frozenset([node.root])
        case LinComb(terms=terms):
            return frozenset().union(*(_weights(x) for _, x in terms if x.type.kind == "vector"))
        case PositionMap(args=args):
            return _weights(args[0])
    return frozenset()


def _origin(node: Node, axis: int) -> dict[Weight, int]:
    """Which axis of which weights an axis of a readout runs along."""
    match node:
        case Weight():
            return {node: axis}
        case MatMul():
            letters, _, out = node.letters
            return {node.root: letters.index(out[axis])} if out[axis] in letters else {}
        case LinComb(terms=terms):
            found: dict[Weight, int] = {}
            for _, x in terms:
                if x.type.kind == "vector":
                    found |= _origin(x, axis)
            return found
        case PositionMap(op=op, args=args):
            source = op.same_axis(args[0].type.shape)[axis]
            return {} if source is None else _origin(args[0], source)
    return {}
