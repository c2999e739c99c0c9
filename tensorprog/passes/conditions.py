"""The conditions under which a program's NTK is that of its tangent program.

A readout weight is used for nothing else (Yang, Tensor Programs II, condition 1, asks besides that no weight is used
together with its transpose: those have correction terms, which `passes.dots` writes out).

One exception: a readout may be tied to a weight used as hidden coordinates below (a tied embedding), where what it is multiplied with
is a function of Gaussians made by other weights alone, none of which is used together with its transpose. Given the layers below,
these Gaussians are independent of the readout, so the output is Gaussian with the covariance of an untied one; the gradients
dh = v phi'(h) that go back from it have mean zero given every h, so that E[d dh / dh] = 0 and all Zdot vanish, and so do the products of
the two uses' gradients.
"""

from __future__ import annotations

from collections.abc import Iterable

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import MatMul, Node, Program, Weight, operands
from tensorprog.passes.structure import Structure, tied_weights, unstopped
from tensorprog.passes.tied import symmetric_law

__all__ = ["check_conditions", "check_layouts", "check_readouts", "check_uses"]


def check_conditions(program: Program) -> Program:
    """Return the program, or raise UnsupportedError naming the weight and the two uses that clash."""
    check_uses(program.nodes)
    return program


def check_readouts(program: Program) -> None:
    """Refuse an output of which no limit is known: parts of a weight that overlap, or a readout that is tied to the layers below
    (but for those of `passes.tied`).

    Averages over the width converge, whatever their weights are used for besides.
    """
    if program.output.type.kind == "vector" and not symmetric_law([program.output]):
        check_uses(program.nodes)
        return
    check_layouts(program.nodes)


def check_layouts(nodes: Iterable[Node]) -> None:
    """Refuse parts of a weight that overlap."""
    parts: dict[str, list[Weight]] = {}
    for node in nodes:
        for weight in (w for w in operands(node) if isinstance(w, Weight)):
            _parts_agree(weight, parts.setdefault(weight.name, []), node)


def check_uses(nodes: Iterable[Node]) -> None:
    """The same for the instructions of several programs together."""
    nodes = tuple(nodes)
    check_layouts(nodes)
    uses: dict[str, tuple[str, Node]] = {}
    facts, transposed = Structure([]), tied_weights(nodes)
    read = _read(nodes, facts)
    for node in nodes:
        for weight in (w for w in operands(node) if isinstance(w, Weight)):
            tied = not transposed and _tied_readout(node, weight, facts, read)
            use = HIDDEN if tied else _use(node, weight)
            first, where = uses.setdefault(weight.name, (use, node))
            if use != first:
                raise _refusal(weight, first, where, use, node)


HIDDEN = "as a vector of hidden coordinates"


def _read(nodes: Iterable[Node], facts: Structure) -> dict[str, set[str]]:
    """For every weight of a readout the weights at the surface of what it reads."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, MatMul) and node.type.width is None and node.x.type.kind == "vector":
            found.setdefault(node.root.name, set()).update(name for name, *_ in facts[node.x].roots)
    return found


def _tied_readout(node: Node, weight: Weight, facts: Structure, read: dict[str, set[str]]) -> bool:
    """Is it a readout of Gaussians that other weights made, so that its weight may be used as hidden coordinates too?

    Not where one of these weights is a readout's of what this one is a part of: v.(u h) and u.(v h) have terms in common.
    """
    if not isinstance(node, MatMul) or node.type.width is not None or node.x.type.kind != "vector":
        return False
    names = {name for name, *_ in facts[node.x].roots}
    return weight.name not in names and not any(weight.name in read.get(name, ()) for name in names)


def _use(node: Node, weight: Weight) -> str:
    """How an instruction uses a weight: along which of its width axes it sums."""
    if not isinstance(node, MatMul):
        return HIDDEN
    letters, _, out = node.letters
    if weight.matrix_axes is not None:
        return "as a matrix"
    summed = [i for i, w in enumerate(weight.widths) if w is not None and letters[i] not in out]
    return f"summed over its axis {summed[0]}" if summed else HIDDEN


def _parts_agree(weight: Weight, known: list[Weight], node: Node) -> None:
    for other in known:
        if unstopped(other) is unstopped(weight):  # one use may see it behind lax.stop_gradient
            return
        overlap = all(a < d and c < b for (a, b), (c, d) in zip(weight.region, other.region, strict=True))
        if overlap:
            raise UnsupportedError(
                explain(
                    f"the weight {weight.name!r} is cut or laid out in two ways that overlap",
                    where=str(node.source or ""),
                    reason=f"one use sees its part {_region(other)} as {other.type}, another its part {_region(weight)} as {weight.type}",
                    mend="cut a weight in one way everywhere, or use two weights",
                )
            )
    known.append(weight)


def _region(weight: Weight) -> str:
    return "[" + ", ".join(f"{a}:{b}" for a, b in weight.region) + "]"


def _refusal(weight: Weight, first: str, at_first: Node, second: str, at_second: Node) -> UnsupportedError:
    return UnsupportedError(
        explain(
            f"the weight {weight.name!r} is used in two ways: {first} and {second}",
            where=f"{at_first.source or '?'} and {at_second.source or '?'}",
            reason="a readout and a hidden vector that are made of one weight are dependent, so that the tangent program does not give "
            "the tangent kernel; the adjoint program would, but the output itself grows with the width, or has fluctuations of all "
            "layers in it, unless what the readout reads is even in each of its coordinates",
            mend="use two independent weights, divide by the width (an average), or put the tied matrix (n, n) between an input layer "
            "and a readout of their own",
        )
    )
