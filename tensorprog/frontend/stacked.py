"""What a hidden variable is that was moved, stacked and taken out again: the variable itself.

Positions are written by maps, and a stack as a sum of arrays with zeros around each. Where each entry of the result is one of
an operand's, that operand and its places are found by sending numbers through the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from ntk_rules.interpreted import by_numpy
from tensorprog.ir import Const, LinComb, Literal, Node, Nonlin, PositionMap
from tensorprog.ir.phi import vector

__all__ = ["moves", "origin", "resolved"]

_NUMBER = sympy.Piecewise((1, vector(0)), (0, True))


@lru_cache(maxsize=4096)
def resolved(node: Node) -> Node:
    """The variable that moves of positions undo each other around, or take out of a stack, functions of one variable in between; the node
    itself where there are none."""
    base, places = node, np.arange(math.prod(node.type.shape))
    functions: list[Nonlin] = []
    while True:
        if (under := _below(base, places)) is not None:
            base, places = under
            if base.type == node.type and np.array_equal(places, np.arange(len(places))):
                return resolved(_applied(functions, base))
        elif base.type != node.type and isinstance(base, Nonlin) and _of_one(base):
            functions.append(base)
            base = base.xs[0]
        else:
            return node


def _of_one(node: Nonlin) -> bool:
    return len(node.xs) == 1 and not node.thetas and node.xs[0].type.shape == node.type.shape


def _applied(functions: Sequence[Nonlin], node: Node) -> Node:
    """Functions one after the other, the first last; a truth value that was made a number, and that a truth value, is what it was."""
    for function in reversed(functions):
        number = isinstance(node, Nonlin) and _of_one(node) and node.phi.expr == _NUMBER
        if number and function.phi.expr == sympy.Ne(vector(0), 0):
            node = node.xs[0]  # type: ignore[attr-defined]
        else:
            node = Nonlin(function.phi, (node,), (), source=function.source)
    return node


def origin(node: Node) -> Node:
    """The variable of which all entries of this one are, as far down as that goes."""
    base, places = node, np.arange(math.prod(node.type.shape))
    while (under := _below(base, places)) is not None:
        base, places = under
    return base


def _below(node: Node, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    """Where in which operand some entries of a variable stand; None where they are no entries of one."""
    if node.type.kind != "vector":
        return None
    if isinstance(node, PositionMap):
        return _source(node, places)
    if isinstance(node, LinComb) and len(node.terms) > 1:
        return _of_stack(node, places)
    return None


def _of_stack(node: LinComb, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    """The one of several arrays, each with zeros around it, that stands at these places."""
    reaching: list[Node] = []
    for a, x in node.terms:
        if a != 1.0 or not isinstance(x, (PositionMap, Const)):
            return None
        here = (
            _places(x)[places]
            if isinstance(x, PositionMap) and _selects(x) and x.type.kind == "vector"
            else _constant(x, node, places)
        )
        if here is None or (here.any() and not here.all()):
            return None
        reaching += [x] if here.any() else []
    if len(reaching) > 1:
        return None
    if not reaching:
        return Const(Literal.of(np.zeros(()))), np.zeros(len(places), int)
    return _source(reaching[0], places)


def _constant(x: Node, node: Node, places: np.ndarray) -> np.ndarray | None:
    """The entries of a deterministic array that is added."""
    array = _number_array(x)
    return None if array is None else np.broadcast_to(array, node.type.shape).ravel()[places]


def _number_array(x: Node) -> np.ndarray | None:
    """What a constant is, moved or not."""
    if isinstance(x, Const):
        return x.value.array().astype(float)
    if isinstance(x, PositionMap) and len(x.args) == 1 and (inner := _number_array(x.args[0])) is not None:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return np.asarray(x.op(jnp.asarray(inner)))
    return None


def _source(node: Node, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    if not isinstance(node, PositionMap) or not _selects(node):
        return None
    found = _places(node)[places]
    return (node.args[0], found - 1) if found.all() else None


def _selects(node: PositionMap) -> bool:
    return node.op.selects and len(node.args) == 1


def moves(node: PositionMap) -> bool:
    """Is every entry one of the operand's?"""
    return _selects(node) and node.type.kind == "vector" and bool(_places(node).all())


@lru_cache(maxsize=4096)
def _places(node: PositionMap) -> np.ndarray:
    """For every entry which one of the operand it is, counted from one; zero where it is filled."""
    shape = node.args[0].type.shape
    with jax.enable_x64(True):
        found = by_numpy(node.op)(np.arange(1.0, math.prod(shape) + 1).reshape(shape))
    return np.asarray(found).astype(int).ravel()
