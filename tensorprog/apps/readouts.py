"""The same network with other outputs or other parameters trained, for the maps of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from tensorprog.ir import LinComb, MatMul, Node, PositionMap, Program, Type, Weight, operands, position, topological
from tensorprog.ir.rebuild import rebuild

__all__ = ["read_out", "trained"]


def read_out(program: Program, vectors: Sequence[Node]) -> Program:
    """The network with another output: the sum, over these of its vectors and over their positions, of frozen readouts with weights of their
    own. Its tangent program always holds, and it depends on all that they hand on."""
    terms: list[tuple[float | Node, Node]] = []
    for k, node in enumerate(vectors):
        kind = node.type
        assert kind.width is not None
        size = math.prod(kind.shape)
        flat = PositionMap(position("reshape", to=(size, 1)), (node,), Type("vector", (size, 1), 1, kind.width))
        whole = (Fraction(0), Fraction(1))
        weight = Weight(f"readout.{k}", (1, 1), (None, kind.width), 1.0, 0.0, (whole, (Fraction(0), kind.width)))
        read = MatMul("ab,cb->ca", weight, flat)
        summed = PositionMap(position("sum", axes=(0,)), (read,), Type("vector", (1,)))
        terms.append((1 / math.sqrt(kind.width), summed))
    return replace(program, output=LinComb(tuple(terms)), mirrored=())


def trained(program: Program, *, only: str | None = None) -> Program:
    """The same network with no frozen parameter; or with all frozen but those whose names begin with `only`. Itself where nothing changes."""
    moved = {w.name for w in program.weights if w.std and not w.per_input}
    if only is not None:
        moved = {w.name for w in program.weights if w.name.startswith(only)}
    if all(bool(w.tangent_std) == (w.name in moved) for w in program.weights):
        return program
    new: dict[Any, Any] = {}
    for node in topological([program.output]):
        if isinstance(node, Weight):
            new[node] = _moving(node, node.name in moved)
        else:
            new[node] = rebuild(node, [new[o] for o in operands(node)])
    return replace(program, output=new[program.output])


def _moving(weight: Weight, moves: bool) -> Weight:
    """The weight, trained or not; a use behind lax.stop_gradient stays one."""
    if moves and weight.stopped:
        return weight
    return replace(weight, tangent_std=(weight.tangent_std or weight.std) if moves else 0.0, stopped=0.0)
