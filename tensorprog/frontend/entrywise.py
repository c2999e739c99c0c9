"""Sums over the width of a parameter times hidden coordinates, entry by entry: readouts in other words.

sum_a v_a h_a is v @ h, whichever way it is written. Where the parameter's entries were moved, summed or scaled at its finite positions
before, y[p, s] = sum_a v[p, a] h[s, a] is made for all positions p of v and s of h, and the linear map L of positions is applied after
the sum: sum_p L[s, p] y[p, s].
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.frontend.build import lincomb
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Layout, Var
from tensorprog.ir import (
    Const,
    LinComb,
    Literal,
    MatMul,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Type,
    Weight,
    position,
)
from tensorprog.ir.phi import vector

__all__ = ["readout_of"]

MOST_ENTRIES = 2**16  # of the map of positions
HALF = Fraction(1, 2)
_ONE = Const(Literal.of(np.ones(())))


@dataclass(frozen=True)
class _Sum:
    """A sum over axes of an array, its width's among them. layout, power: of what is left."""

    shape: tuple[int, ...]
    axis: int
    axes: tuple[int, ...]
    layout: Layout
    power: Fraction

    @property
    def whole(self) -> bool:
        return len(self.axes) == len(self.shape)


def readout_of(var: Var, axes: tuple[int, ...]) -> Var | None:
    """The sum of a variable over `axes`, its width among them, as products with weights; None where it is a sum of something else.

    Raises Refusal where it is a readout, but of no form that is known.
    """
    terms: list[tuple[float, Var]] = []
    layout: Layout = tuple(a for i, a in enumerate(var.layout) if i not in axes)
    for _, block in var.blocks:
        node, over = block, axes
        while len(over) == len(node.type.shape) and isinstance(node, PositionMap) and node.op.name == "reshape":
            node = node.args[0]  # all of its entries are summed
            over = tuple(range(len(node.type.shape)))
        part, axis = _factors(node), node.type.axis
        if part is None:  # the rest, of larger order, is all that counts
            return None
        assert axis is not None
        asked = _Sum(node.type.shape, axis, over, layout, var.power + HALF)
        terms += [(a, _summed(chain, weight, x, asked)) for a, chain, weight, x in part]
    return lincomb(terms)


# A coefficient, the maps of positions from the weight on, and the weight.
Term = tuple[float, tuple[PositionMap, ...], Weight]
# The same, with what the parameter multiplies.
Factor = tuple[float, tuple[PositionMap, ...], Weight, Node]


def _factors(node: Node) -> list[Factor] | None:
    """A sum of parameters times hidden coordinates; None for anything else."""
    if (alone := _linear(node)) is not None:
        return [(*term, _ONE) for term in alone]
    if isinstance(node, LinComb):
        return _factors_of_sum(node)
    return _factors_of_product(node) if isinstance(node, Nonlin) else None


def _factors_of_sum(node: LinComb) -> list[Factor] | None:
    found: list[Factor] = []
    for a, x in node.terms:
        inner = _factors(x) if x.type.kind == "vector" else None
        if inner is None:
            return None
        for b, chain, weight, y in inner:
            if isinstance(a, Node):
                found.append((b, chain, weight, LinComb(((a, y),)) if y is not _ONE else a))
            else:
                found.append((a * b, chain, weight, y))
    return found


def _factors_of_product(node: Nonlin) -> list[Factor] | None:
    for i, x in enumerate(node.xs):
        terms = _linear(x)
        if terms is None:
            continue
        rest = sympy.cancel(node.phi.expr / vector(i))
        if rest.has(vector(i)):  # not linear in it
            continue
        used = [k for k in range(len(node.xs)) if rest.has(vector(k))]
        if len(used) == 1 and not node.thetas and rest == vector(used[0]):
            return [(*term, node.xs[used[0]]) for term in terms]
        swap = {vector(k): vector(j) for j, k in enumerate(used)}
        phi = Phi(rest.xreplace(swap), len(used), len(node.thetas))
        made = Nonlin(phi, tuple(node.xs[k] for k in used), node.thetas, source=node.source)
        return [(*term, made) for term in terms]
    return None


def _linear(node: Node) -> list[Term] | None:
    """A linear combination of parameters, at most moved and summed over positions; None for anything else."""
    match node:
        case Weight():
            return [(1.0, (), node)]
        case LinComb(terms=terms):
            found: list[Term] = []
            for a, x in terms:
                inner = _linear(x) if x.type.kind == "vector" and not isinstance(a, Node) else None
                if inner is None:
                    return None
                found += [(a * b, chain, weight) for b, chain, weight in inner]  # type: ignore[operator]
            return found
        case PositionMap(args=(x,)):
            inner = _linear(x)
            return None if inner is None else [(b, (*chain, node), weight) for b, chain, weight in inner]
    return None


def _summed(chain: tuple[PositionMap, ...], weight: Weight, x: Node, asked: _Sum) -> Var:
    """sum over `asked.axes` of L(weight) x."""
    along = weight.type.axis
    if weight.per_input:
        raise Refusal(
            "it sums a parameter times hidden coordinates, and the parameter is drawn anew for every input",
            "drop coordinates of hidden layers (nn.dropout), whose masks average out over the width; let readouts be ordinary parameters",
        )
    assert along is not None
    if not _carried(chain, weight, along, asked):
        if asked.whole and all(node.op.name == "reshape" for node in chain):
            return _paired(weight, along, x, asked)
        raise Refusal(
            "it sums a parameter times hidden coordinates, and the parameter's entries were moved after its positions and coordinates "
            "had become one axis",
            "move positions before flattening, or use the parameter itself in the product (dot, matmul, einsum, or * and sum)",
        )
    shape, axis, axes = asked.shape, asked.axis, asked.axes
    places = [i for i in range(len(weight.shape)) if i != along]  # the positions of the weight
    names = iter(string.ascii_letters)
    coordinate = next(names)
    of_weight = [next(names) for _ in weight.shape]
    of_x = [next(names) for _ in shape]
    of_weight[along] = of_x[axis] = coordinate
    kept = [i for i in range(len(shape)) if i != axis]
    out = [of_weight[i] for i in places] + [of_x[i] for i in kept]
    made: Node = MatMul(f"{''.join(of_weight)},{''.join(of_x)}->{''.join(out)}", weight, _filled(x, shape))
    sizes = tuple(weight.shape[i] for i in places)
    matrix = _matrix(chain, weight, along, axis)
    weighed = LinComb(((Const(Literal.of(matrix.reshape((*sizes, *(shape[i] for i in kept))))), made),))
    total: Node = weighed if np.any(matrix != 1) else made
    gone = (*range(len(places)), *(len(places) + kept.index(i) for i in axes if i != axis))
    left = tuple(shape[i] for i in kept if i not in axes)
    if gone:
        total = PositionMap(position("sum", axes=gone), (total,), Type("vector", left))
    return Var.of(total, asked.layout, asked.power)


def _carried(chain: tuple[PositionMap, ...], weight: Weight, along: int, asked: _Sum) -> bool:
    """Is the axis of the weight's coordinates that of the product's, with all positions in it, if any, in their places?"""
    if weight.shape[along] == 1 == asked.shape[asked.axis]:  # coordinates alone, which no map of positions mixes
        return True
    at: int | None = along
    for node in chain:
        source = node.op.same_axis(node.args[0].type.shape)
        at = source.index(at) if at in source else None
    return at == asked.axis


def _paired(weight: Weight, along: int, x: Node, asked: _Sum) -> Var:
    """sum of all entries of a reshaped weight times x: those of the weight times those of x in its shape."""
    letters = string.ascii_letters[: len(weight.shape)]
    typed = Type(x.type.kind, weight.shape, *((along, x.type.width) if x.type.kind == "vector" else ()))
    x = _filled(x, asked.shape)
    x = x if x.type == typed else PositionMap(position("reshape", to=weight.shape), (x,), typed)
    return Var.of(MatMul(f"{letters},{letters}->", weight, x), asked.layout, asked.power)


def _filled(x: Node, shape: tuple[int, ...]) -> Node:
    """A deterministic array that was to be broadcast, in its full shape."""
    if x.type.shape == shape:
        return x
    axes = tuple(range(len(shape) - len(x.type.shape), len(shape)))
    return PositionMap(position("broadcast", to=shape, axes=axes), (x,), Type(x.type.kind, shape))


def _matrix(chain: tuple[PositionMap, ...], weight: Weight, along: int, axis: int) -> np.ndarray:
    """The map of positions as a matrix: from those of the weight to those of the product, without the axis of the width."""
    sizes = tuple(n for i, n in enumerate(weight.shape) if i != along)
    count = math.prod(sizes)
    final = chain[-1].type.shape if chain else weight.shape
    if math.prod(weight.shape) * math.prod(final) > MOST_ENTRIES:
        raise Refusal(
            f"it sums a parameter times hidden coordinates, and the map from the positions of the parameter, {sizes}, to those of the "
            f"product, {final}, has more than {MOST_ENTRIES} entries",
            "use the parameter itself in the product (dot, matmul, einsum, or * and sum), and move positions after it",
        )
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        units = jnp.eye(count).reshape((count, *sizes))
        units = jnp.stack([units] * weight.shape[along], 1 + along)
        for node in chain:
            units = jax.vmap(node.op)(units)
        found = np.asarray(units)
    return found.take(0, 1 + axis)
