"""Averages over the width as outputs: the vector whose average they are, and when its derivative describes how they are trained.

An average f = (1/n) sum_a psi_a has a gradient of norm 1/sqrt(n), so that its neural tangent kernel vanishes like 1/n, and
what has a limit is n times it (mean-field networks are trained at the rate n: Mei, Montanari and Nguyen 2018). In a random
direction of the parameters the derivatives of the psi_a are independent of each other where every psi_a depends on parameters of
its own coordinate alone: then n E[t_f t_f'] -> E[Z^{t_psi} Z^{t_psi'}]. Through a trained layer below a wide weight, or through
another average, the coordinates move together, and the limit needs the program of the gradients with its transposes
(`passes.adjoint`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import (
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Type,
    operands,
    position,
    topological,
)

__all__ = ["average_of", "average_refusal", "refusal"]


def average_of(program: Program) -> Program | None:
    """The program of a vector psi whose derivative is that of the output, up to its average.

    Of f = g(m_1, ..), a function of averages m_i of psi_i over w_i n coordinates, it is sum_i d_i g(m) psi_i / sqrt(w_i): to first
    order f moves like its average, and d_i g(m) is a number in the limit. None where some step is no formula.
    """
    known: dict[Node, Node | None] = {}
    for node in topological([program.output]):
        if node.type.kind == "scalar":
            known[node] = _vector(node, known)
    found = known[program.output]
    return None if found is None else Program(program.inputs, found)


def _vector(node: Node, known: dict[Node, Node | None]) -> Node | None:
    match node:
        case Moment(phi=phi, xs=xs, thetas=thetas):
            made = Nonlin(phi, xs, thetas, source=node.source)
            width = xs[0].type.width
            return LinComb(((1 / math.sqrt(1 if width is None else width), made),), source=node.source)
        case LinComb(terms=terms) if not any(isinstance(a, Node) and _has_moment(a) for a, _ in terms):
            return _sum(node, [(a, x) for a, x in terms if _has_moment(x)], known)
        case Nonlin(phi=phi, thetas=thetas):
            moving = [i for i, theta in enumerate(thetas) if _has_moment(theta)]
            slope = lambda i: Nonlin(Phi(phi.diff_parameter(i), 0, len(thetas)), (), thetas, source=node.source)
            return _sum(node, [(slope(i), thetas[i]) for i in moving], known)
        case PositionMap(op=op, args=args, result=result) if not any(map(_has_moment, args[1:])):
            first = known[args[0]]
            return (
                None
                if first is None
                else PositionMap(op, (first, *args[1:]), _type(first, result.shape), source=node.source)
            )
    return None


def _sum(node: Node, terms: Sequence[tuple[float | Node, Node]], known: dict[Node, Node | None]) -> Node | None:
    """The sum of coefficients times vectors, each in the shape of the result."""
    parts: list[tuple[float | Node, Node]] = []
    for a, x in terms:
        vector, shape = known[x], node.type.shape
        if vector is None:
            return None
        if vector.type.shape != shape:
            axes = tuple(range(len(shape) - len(vector.type.shape), len(shape)))
            vector = PositionMap(
                position("broadcast", to=shape, axes=axes), (vector,), _type(vector, shape), source=node.source
            )
        parts.append((a, vector))
    return LinComb(tuple(parts), source=node.source) if parts else None


def _type(vector: Node, shape: tuple[int, ...]) -> Type:
    return Type("vector", shape, vector.type.axis, vector.type.width)


def _has_moment(node: Node) -> bool:
    return any(isinstance(n, Moment) for n in topological([node], skip=lambda n: n.type.kind != "scalar"))


def average_refusal(program: Program) -> str | None:
    """Why the trained coordinates of what is averaged do not move independently of each other; None where they do."""
    moves: dict[Node, bool] = {}
    for node in topological(x for average in _outermost(program.output) for x in operands(average)):
        inner = any(moves[o] for o in operands(node))
        if isinstance(node, Moment) and inner:
            return "another average over the width, of trained coordinates, is a part of it"
        if isinstance(node, MatMul):
            if inner and moves[node.x]:
                return f"the weight {node.root.name!r} mixes coordinates of a layer that is trained below it"
            inner = bool(node.root.tangent_std)
        moves[node] = inner or bool(getattr(node, "tangent_std", 0.0))
    return None


def _outermost(output: Node) -> list[Moment]:
    """The averages that an output is a function of."""
    nodes = topological([output], skip=lambda n: n.type.kind != "scalar")
    inner = {n for n in nodes if isinstance(n, Moment)}
    below = {o for n in inner for o in topological(operands(n))}
    return [n for n in topological([output]) if n in inner and n not in below]


def refusal(label: str, reason: str) -> UnsupportedError:
    """The neural tangent kernel of an average that the tangent program does not give."""
    return UnsupportedError(
        explain(
            f"the neural tangent kernel of the average {label!r} is not that of its tangent program",
            reason=f"{reason}, so that its coordinates move together, and the limit needs the adjoint program",
            mend="method='auto' or 'adjoint'; or freeze the layers below (train=False)",
        )
    )
