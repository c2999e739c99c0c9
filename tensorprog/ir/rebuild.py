"""The same instruction with other operands: what every rewriting pass does with the nodes it has no opinion on."""

from __future__ import annotations

from collections.abc import Sequence

from tensorprog.ir.nodes import ArrayOp, LinComb, MatMul, Moment, Node, Nonlin, PositionMap, Trsp, operands

__all__ = ["rebuild"]


def rebuild(node: Node, new: Sequence[Node]) -> Node:
    """`node` with the operands `new`, in the order of `operands(node)`."""
    if tuple(new) == operands(node):
        return node
    match node:
        case Trsp():
            return Trsp(new[0], source=node.source)
        case MatMul(spec=spec):
            return MatMul(spec, new[0], new[1], source=node.source)
        case LinComb(terms=terms):
            rest = iter(new)
            return LinComb(
                tuple((next(rest) if isinstance(a, Node) else a, next(rest)) for a, _ in terms), source=node.source
            )
        case PositionMap(op=op, result=result):
            return PositionMap(op, tuple(new), result, source=node.source)
        case Nonlin(phi=phi, xs=xs) | Moment(phi=phi, xs=xs):
            return type(node)(phi, tuple(new[: len(xs)]), tuple(new[len(xs) :]), source=node.source)
        case ArrayOp(primitive=primitive, params=params, shape=shape):
            return ArrayOp(primitive, params, tuple(new), shape, source=node.source)
    raise AssertionError(f"{type(node).__name__} has no operands")
