"""When two quantities of a kernel graph, or two instructions of a program, do the same: what a recursion compares layers by.

Names do not count: those of weights, and the variables that an expectation over a whole field is written in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from tensorprog.ir import (
    ArrayOp,
    Const,
    Input,
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Weight,
    operands,
    topological,
)
from tensorprog.ir.rebuild import rebuild
from tensorprog.kernel.graph import Average, Combine, Data, Expect, Given, Quantity, Sampled, Tilted, quantities
from tensorprog.kernel.questions import Second
from tensorprog.lower.schedule import operands_of, signature

__all__ = [
    "Vertex",
    "family_of",
    "follows",
    "is_input",
    "kind_of",
    "made_by_layers",
    "nearly",
    "operands_at",
    "rescaled",
    "same",
    "shape_of",
]

Vertex = tuple[Any, int | None]  # a quantity and whose: that of input 0 or 1, or (None) of the pair; or an instruction


def operands_at(vertex: Vertex) -> tuple[Vertex, ...]:
    """What a quantity reads, and of which input; what an instruction reads."""
    item, side = vertex
    if isinstance(item, Node):
        return tuple((o, None) for o in operands(item))
    if side is not None:
        return tuple((o.quantity, side) for o in operands_of(item))
    return tuple((o.quantity, o.side) for o in operands_of(item))


def is_input(vertex: Vertex) -> bool:
    """Is it an array of the network's inputs?"""
    item = vertex[0]
    return isinstance(item.node if isinstance(item, Data) else item, Input)


def made_by_layers(vertex: Vertex) -> bool:
    """Is it what layers make, and no input as it is read?"""
    item = vertex[0]
    if isinstance(item, Node):
        inner = isinstance(item, (MatMul, Nonlin, Moment))
        return inner and any(o.type.kind == "vector" and not isinstance(o, Weight) for o in operands(item))
    return isinstance(item, (Average, Expect, Sampled, Tilted))


def shape_of(vertex: Vertex) -> Any:
    """The shape of a quantity, the type of an instruction's variable."""
    item = vertex[0]
    return item.type if isinstance(item, Node) else item.shape


def kind_of(vertex: Vertex) -> Hashable:
    """What it computes, apart from what it reads."""
    item, side = vertex
    match item:
        case Sampled():
            return _of_sampled(item), side
        case Tilted():
            return _of_tilted(item), side
        case Node():
            return _of_instruction(item)
    return signature(item), side


def family_of(vertex: Vertex) -> Hashable:
    """The same for sums that differ in factors alone."""
    if isinstance(vertex[0], (Combine, LinComb)):
        return type(vertex[0]), len(operands_at(vertex)), shape_of(vertex), vertex[1]
    return kind_of(vertex)


def follows(u: Vertex, v: Vertex) -> bool:
    """Are they made of the inputs in one way, but for the places that they are read at, as the steps of a sequence are? Numbers of their
    own, as a factor or a hyperparameter of each layer, are no such thing."""
    stack, done, reads = [(u, v)], set(), False
    while stack:
        pair = stack.pop()
        if pair in done:
            continue
        done.add(pair)
        a, b = pair
        x, y = (w[0].node if isinstance(w[0], Data) else w[0] for w in pair)
        reads = reads or is_input(a)
        if isinstance(x, (PositionMap, ArrayOp)):
            alike = type(x) is type(y) and (a[1], len(operands_at(a))) == (b[1], len(operands_at(b)))
        elif isinstance(x, Const) and isinstance(y, Const):
            alike = x == y or (np.dtype(x.value.dtype).kind in "iu" and np.dtype(y.value.dtype).kind in "iu")
        else:
            alike = kind_of(a) == kind_of(b) and not isinstance(x, Weight)
        if not alike:
            return False
        stack.extend(zip(operands_at(a), operands_at(b), strict=True))
    return reads


def _of_instruction(node: Node) -> Hashable:
    kinds = tuple(o.type for o in operands(node))
    match node:
        case Weight():  # parts of one parameter, at other places of it, are as good as parameters of other names
            return type(node), tuple(getattr(node, f.name) for f in fields(node) if f.name not in _NAMES)
        case MatMul(spec=spec):
            return type(node), spec, kinds
        case Nonlin(phi=phi, xs=xs) | Moment(phi=phi, xs=xs):
            return type(node), phi, len(xs), kinds
        case LinComb(terms=terms):
            return type(node), tuple(None if isinstance(a, Node) else a for a, _ in terms), kinds
        case PositionMap(op=op, result=result):
            return type(node), op, result, kinds
        case ArrayOp(primitive=primitive, params=params, shape=shape):
            return type(node), primitive, params, shape, kinds
    return (type(node), kinds) if operands(node) else node


_NAMES = ("name", "region", "source", "type")


def _of_sampled(q: Sampled) -> Hashable:
    """Of an expectation over a field: its function, in numbered variables."""
    numbered: dict[Node, Node] = {}
    for leaf in q.leaves:
        kind = leaf.node.type
        widths = tuple(kind.width if i == kind.axis else None for i in range(len(kind.shape)))
        numbered.setdefault(leaf.node, Weight(f"leaf {len(numbered)}", kind.shape, widths, 1.0, 0.0, ()))
    for node, _ in q.scalars:
        numbered.setdefault(node, Input(f"scalar {len(numbered)}", node.type.shape, "float64"))
    new = dict(numbered)
    for node in topological([root for root, _ in q.roots], skip=numbered.__contains__):
        new[node] = rebuild(node, [new[o] for o in operands(node)])
    return (
        Sampled, tuple((new[node], letters) for node, letters in q.roots),
        tuple(replace(leaf, node=new[leaf.node]) for leaf in q.leaves), tuple((new[node], side) for node, side in q.scalars),
        q.together, q.pairs, q.carried, q.sizes, q.points, q.out, q.cross, _read(q),
    )  # fmt: skip


def _of_tilted(q: Tilted) -> Hashable:
    """Of an expectation under tilted laws: what is inside, with what is given there numbered."""
    places: dict[Quantity, int] = {}
    inside: list[Hashable] = []
    for quantity in quantities([quantity for _, quantity in q.parts]):
        places[quantity] = len(places)
        if isinstance(quantity, Given):
            inside.append((_given(q, quantity), quantity.tilted, quantity.shape, quantity.cross))
        else:
            inside.append((signature(quantity), tuple(places[o.quantity] for o in operands_of(quantity))))
    parts = tuple((powers, places[quantity]) for powers, quantity in q.parts)
    return Tilted, tuple(inside), parts, q.sizes, q.norms, q.pairs, q.nodes, q.error, q.shape, q.cross, _read(q)


def _given(q: Tilted, given: Given) -> Hashable:
    asked = given.question
    if given.tilted and isinstance(asked, Second):
        return q.leaves.index(asked.u), q.leaves.index(asked.v), asked.cross, asked.lu, asked.lv, asked.out
    return tuple((i, side) for i, (outer, side) in enumerate(q.outer) if outer == given)


def _read(q: Quantity) -> tuple[Hashable, ...]:
    return tuple((o.side, shape_of((o.quantity, None))) for o in operands_of(q))


# ---- sums whose factors differ


def _factors(u: Vertex, v: Vertex) -> list[tuple[int, float, float]] | None:
    """Of two sums that differ in their factors alone, those that differ, and what they multiply: which operand; None where they are no
    such sums."""
    a, b = u[0], v[0]
    if u[1] != v[1] or shape_of(u) != shape_of(v):
        return None
    if isinstance(a, Combine) and isinstance(b, Combine):
        pairs = [(k, c, d) for k, (c, d) in enumerate(zip(a.coefficients, b.coefficients, strict=False))]
        alike = len(a.operands) == len(b.operands)
    elif isinstance(a, LinComb) and isinstance(b, LinComb):
        pairs, at = [], 0
        for (c, _), (d, _) in zip(a.terms, b.terms, strict=False):
            if isinstance(c, Node) != isinstance(d, Node):
                return None
            if isinstance(c, Node) or isinstance(d, Node):
                at += 1
            else:
                pairs.append((at, float(c), float(d)))
            at += 1
        alike = [o.type for o in operands(a)] == [o.type for o in operands(b)]
    else:
        return None
    if not alike or len(operands_at(u)) == 1 or any(d == 0 for _, _, d in pairs):
        return None
    return [(k, c, d) for k, c, d in pairs if not math.isclose(c, d, rel_tol=1e-12)]


def nearly(u: Vertex, v: Vertex) -> list[Vertex] | None:
    """Of two sums that differ in factors alone, what the second one's different factors multiply; None where they are no such sums."""
    found = _factors(u, v)
    return None if found is None else [operands_at(v)[k] for k, _, _ in found]


def rescaled(vertex: Vertex, k: int, like: Vertex) -> Vertex:
    """What a sum reads at a place, with its factor where another one's is different; what anything else reads there."""
    operand = operands_at(vertex)[k]
    if vertex == like:
        return operand
    for i, c, d in _factors(vertex, like) or ():
        if i == k and isinstance(operand[0], Node):
            return LinComb(((c / d, operand[0]),)), None
        if i == k:
            quantity = vertex[0]
            return Combine((c / d,), (quantity.operands[k],), quantity.shape, quantity.cross), vertex[1]
    return operand


def same(u: Vertex, v: Vertex) -> bool:
    """Are they the same, but for the rounding of a factor?"""
    if u == v:
        return True
    a, b = _numbers(u), _numbers(v)
    if a is None or b is None or operands_at(u) != operands_at(v):
        return False
    return type(u[0]) is type(v[0]) and u[1] == v[1] and bool(np.allclose(a, b, rtol=1e-12, atol=0))


def _numbers(vertex: Vertex) -> list[float] | None:
    """The factors of a sum, where they are numbers."""
    item = vertex[0]
    if isinstance(item, Combine):
        return list(item.coefficients)
    if isinstance(item, LinComb):
        factors = [a for a, _ in item.terms if not isinstance(a, Node)]
        return factors if len(factors) == len(item.terms) else None
    return None
