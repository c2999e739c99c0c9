"""Small equalities that hold for every input, one rule each: the first that applies is taken.

A rule takes an instruction whose operands are already simple, and returns a simpler one, or None to decline.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable

import numpy as np

from tensorprog.ir import Const, LinComb, Literal, MatMul, Moment, Node, Nonlin, Position, PositionMap, position
from tensorprog.ir.phi import identity, parameter
from tensorprog.passes.structure import Structure

__all__ = ["RULES", "simplify"]


def simplify(node: Node, facts: Structure) -> Node:
    """The simplest form the rules find."""
    changed = True
    while changed:
        changed = False
        for rule in RULES:
            simpler = rule(node, facts)
            if simpler is not None and simpler is not node:
                node, changed = simpler, True
                break
    return node


def mean_of_gaussian(node: Node, facts: Structure) -> Node | None:
    """E g = 0."""
    if isinstance(node, Moment) and node.phi == identity and facts[node.xs[0]].gaussian:
        if any(name in facts.tied for name, *_ in facts[node.xs[0]].roots):
            return None
        return Const(Literal.of(np.zeros(node.type.shape)))
    return None


def untransposed(node: Node, facts: Structure) -> Node | None:
    """A product with a transposed matrix is one with the matrix, its letters swapped; of a symmetric one the second axis is
    summed."""
    if not isinstance(node, MatMul):
        return None
    (w, x, out), axes = node.letters, node.root.matrix_axes
    if node.root.symmetric and axes is not None and node.summed == axes[0]:
        (i, j), swapped = axes, list(w)
        swapped[i], swapped[j] = w[j], w[i]
        w = "".join(swapped)
    spec = f"{w},{x}->{out}"
    if node.weight is node.root and spec == node.spec:
        return None
    names = dict(zip(dict.fromkeys(w + x), string.ascii_letters, strict=False))
    return MatMul("".join(names.get(c, c) for c in spec), node.root, node.x, source=node.source)


def copied(node: Node, facts: Structure) -> Node | None:
    """The elementwise function a -> a, or z -> z."""
    if isinstance(node, Nonlin) and node.phi == identity:
        return node.xs[0]
    if isinstance(node, Nonlin) and not node.xs and node.phi.expr == parameter(0) and len(node.thetas) == 1:
        return node.thetas[0]
    return None


def zero_moved(node: Node, facts: Structure) -> Node | None:
    """A linear map of zeros is zeros."""
    if isinstance(node, PositionMap) and is_zero(node.args[0]):
        return Const(Literal.of(np.zeros(node.type.shape)))
    return None


def is_zero(node: Node) -> bool:
    """Zeros, or a product of weights with zeros, as in the first step of a recurrence."""
    if isinstance(node, MatMul):
        return is_zero(node.x)
    return isinstance(node, Const) and not np.any(node.value.array())


def short_sum(node: Node, facts: Structure) -> Node | None:
    """Zero terms go; a sum of one term with coefficient one is that term."""
    if not isinstance(node, LinComb):
        return None
    kept = tuple(
        (a, x) for a, x in node.terms if not is_zero(x) and not (isinstance(a, Node) and is_zero(a)) and a != 0.0
    )
    same_shape = len(kept) == 1 and kept[0][1].type.shape == node.type.shape
    if same_shape and kept[0][0] == 1.0:
        return kept[0][1]
    if len(kept) < len(node.terms) and kept and LinComb(kept).type == node.type:
        return LinComb(kept, source=node.source)
    return None


def factor_taken_in(node: Node, facts: Structure) -> Node | None:
    """a (b x) = (a b) x for numbers a and b. A multiple of a longer sum stays one, so that it is seen to be a multiple."""
    if isinstance(node, LinComb) and len(node.terms) == 1:
        a, x = node.terms[0]
        if isinstance(x, LinComb) and len(x.terms) == 1 and x.type.kind == "vector" and not isinstance(a, Node):
            numbers = [(b, y) for b, y in x.terms if not isinstance(b, Node)]
            if len(numbers) == len(x.terms):
                return LinComb(tuple((a * b, y) for b, y in numbers), source=node.source)
    return None


def only_reshapes(node: Node, facts: Structure) -> Node | None:
    """Sums over axes of size one, and broadcasts to new ones, are reshapes; reshapes after one another are one."""
    if not isinstance(node, PositionMap) or len(node.args) > 1:
        return None
    x = node.args[0]
    if node.op.name in ("sum", "broadcast", "squeeze") and math.prod(x.type.shape) == math.prod(node.type.shape):
        return PositionMap(position("reshape", to=node.type.shape), (x,), node.result, source=node.source)
    if node.op.name != "reshape":
        return None
    if x.type == node.type:
        return x
    if isinstance(x, PositionMap) and x.op.name == "reshape":
        first = x.args[0]
        return first if first.type == node.type else PositionMap(node.op, (first,), node.result, source=node.source)
    return None


def reshaped_constant(node: Node, facts: Structure) -> Node | None:
    """A map of a constant with one entry is a constant."""
    if isinstance(node, PositionMap) and node.op.name == "reshape" and isinstance(node.args[0], Const):
        return Const(Literal.of(node.args[0].value.array().reshape(node.type.shape)))
    return None


def taken_back(node: Node, facts: Structure) -> Node | None:
    """A slice of arrays that were put beside each other, as by a stack: of those that it reaches alone."""
    if not isinstance(node, PositionMap) or node.op.name != "slice" or not isinstance(node.args[0], LinComb):
        return None
    kept = []
    for a, x in node.args[0].terms:
        if isinstance(a, Node) or not isinstance(x, PositionMap) or x.op.name != "pad" or len(x.args) > 1:
            return None
        part = _under(node.op, x)
        if part is None:
            return None
        start, stop = part
        inner = x.args[0]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            continue
        if start != (0,) * len(start) or stop != inner.type.shape:
            op = position("slice", start=start, stop=stop, stride=(1,) * len(start))
            inner = PositionMap(op, (inner,), node.result, source=node.source)
            inner = taken_back(inner, facts) or inner
        kept.append((a, inner))
    if not kept:
        return None
    return kept[0][1] if len(kept) == 1 and kept[0][0] == 1.0 else LinComb(tuple(kept), source=node.source)


def _under(cut: Position, padded: PositionMap) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The part of a padded array that a slice of it takes, an empty one where it takes zeros only; None where it takes both."""
    config, shape = padded.op.kw["config"], padded.args[0].type.shape
    if any(step != 1 for step in cut.kw["stride"]) or any(low < 0 or high < 0 or gap for low, high, gap in config):
        return None
    parts = [
        (start - low, stop - low)
        for start, stop, (low, *_) in zip(cut.kw["start"], cut.kw["stop"], config, strict=True)
    ]
    if any(stop <= 0 or start >= n for (start, stop), n in zip(parts, shape, strict=True)):
        return (0,) * len(shape), (0,) * len(shape)
    if any(start < 0 or stop > n for (start, stop), n in zip(parts, shape, strict=True)):
        return None
    return tuple(start for start, _ in parts), tuple(stop for _, stop in parts)


RULES: tuple[Callable[[Node, Structure], Node | None], ...] = (
    untransposed, mean_of_gaussian, copied, zero_moved, short_sum, factor_taken_in, only_reshapes, reshaped_constant,
    taken_back,
)  # fmt: skip
