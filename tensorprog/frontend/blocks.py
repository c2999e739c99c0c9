"""A part of the coordinates of a vector variable, taken at the weights that made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from tensorprog.frontend.refusals import Refusal
from tensorprog.ir import LinComb, MatMul, Node, Nonlin, PositionMap, Type, Weight
from tensorprog.ir.nodes import operands

__all__ = ["take_block"]


def take_block(node: Node, start: Fraction, stop: Fraction) -> Node:
    """The coordinates from start n to stop n of a vector variable: the block is taken at the weights that made it."""
    done: dict[Node, Node] = {}
    stack = [node]
    while stack:
        current = stack[-1]
        waits = (
            []
            if isinstance(current, MatMul)
            else [p for p in operands(current) if p.type.kind == "vector" and p not in done]
        )
        if waits:
            stack.extend(waits)
            continue
        stack.pop()
        if current not in done:
            done[current] = _rebuild(current, start, stop, done)
    return done[node]


def _rebuild(node: Node, start: Fraction, stop: Fraction, done: dict[Node, Node]) -> Node:
    new: Callable[[Node], Node] = lambda n: done.get(n, n)
    match node:
        case Weight():
            return _weight_block(node, node.type.axis, start, stop)
        case MatMul(spec=spec, weight=Weight() as weight, x=x):
            letters = node.letters
            assert node.type.axis is not None
            axis = letters[0].index(letters[2][node.type.axis])
            return MatMul(spec, _weight_block(weight, axis, start, stop), x, source=node.source)
        case LinComb(terms=terms):
            return LinComb(tuple((a, new(x)) for a, x in terms), source=node.source)
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            return Nonlin(phi, tuple(map(new, xs)), thetas, source=node.source)
        case PositionMap(op=op, args=args, result=result):
            width = stop - start
            return PositionMap(
                op, (new(args[0]), *args[1:]), Type(result.kind, result.shape, result.axis, width), source=node.source
            )
    raise Refusal(f"a {type(node).__name__} cannot be cut along the width")


def _weight_block(weight: Weight, axis: int | None, start: Fraction, stop: Fraction) -> Weight:
    assert axis is not None
    if weight.shape[axis] != 1:
        raise Refusal("an axis where positions and width were flattened together cannot be cut along the width")
    at = weight.region[axis][0]
    region = (*weight.region[:axis], (at + start, at + stop), *weight.region[axis + 1 :])
    widths = (*weight.widths[:axis], stop - start, *weight.widths[axis + 1 :])
    return replace(weight, widths=widths, region=region)
