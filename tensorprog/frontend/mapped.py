"""Position maps applied to program variables, simplified where they do nothing or follow one another."""

from __future__ import annotations

import math

from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Layout, Var, width_axis
from tensorprog.ir import LinComb, Node, Position, PositionMap, Type, position

__all__ = ["map_positions"]


def map_positions(var: Var, op: Position, layout: Layout, *aux: Node) -> Var:
    """Apply a position map to every block of a variable."""
    return var.with_blocks([_mapped(op, node, layout, aux) for _, node in var.blocks], layout)


def _mapped(op: Position, node: Node, layout: Layout, aux: tuple[Node, ...]) -> Node:
    if op.name == "broadcast" and node.type.width is not None and math.prod(op.kw["to"]) == math.prod(node.type.shape):
        op = position("reshape", to=op.kw["to"])
    if op.name == "reshape" and isinstance(node, PositionMap) and node.op.name == "reshape":
        return _mapped(op, node.args[0], layout, aux)
    if _does_nothing(op, node, layout):
        return node
    if isinstance(node, LinComb) and op.selects and not op.row.fills and not aux and _has_number(node):
        # entries are only moved, a number is the same everywhere: trained gains, 1 + W, stay affine in a Gaussian
        terms = [
            (a, x if x.type.kind == "scalar" and x.type.shape == () else _mapped(op, x, layout, aux))
            for a, x in node.terms
        ]
        return LinComb(tuple(terms))
    args = (node, *aux)
    shape = op.shape(*(a.type.shape for a in args))
    axis = width_axis(layout)
    if node.type.kind == "scalar" or node.type.width is None:
        return PositionMap(op, args, Type(node.type.kind, shape))
    if axis is None:
        raise Refusal("it makes an array without a width axis out of hidden vectors")
    return PositionMap(op, args, Type("vector", shape, axis, node.type.width))


def _has_number(node: LinComb) -> bool:
    """Is it a sum of one vector and numbers?"""
    kinds = [x.type.kind == "scalar" and x.type.shape == () for a, x in node.terms if not isinstance(a, Node)]
    return len(kinds) == len(node.terms) == 2 and sum(kinds) == 1


def _does_nothing(op: Position, node: Node, layout: Layout) -> bool:
    shape = node.type.shape
    if node.type.width is not None and node.type.axis != width_axis(layout):  # (n, 1) as (1, n)
        return False
    match op.name:
        case "reshape":
            return op.kw["to"] == shape
        case "transpose":
            return op.kw["permutation"] == tuple(range(len(shape)))
        case "sum":
            return not op.kw["axes"]
        case "pad":
            return not any(map(any, op.kw["config"]))
        case "broadcast":
            return op.kw["to"] == shape and op.kw["axes"] == tuple(range(len(shape)))
    return False
