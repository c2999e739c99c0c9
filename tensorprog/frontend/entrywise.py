"""Sums over the width of a parameter times hidden coordinates, entry by entry: readouts in other words.

sum_a v_a h_a is v @ h, whichever way it is written. Where the parameter's entries were moved, summed or scaled at its finite positions
before, y[p, s] = sum_a v[p, a] h[s, a] is made for all positions p of v and s of h, and the linear map L of positions is applied after
the sum: sum_p L[s, p] y[p, s].
"""

from __future__ import annotations

import math
import string
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.frontend.build import lincomb
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Layout, Var, width_axis
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


def readout_of(var: Var, axes: tuple[int, ...]) -> Var | None:
    """The sum of a variable over `axes`, its width among them, as products with weights; None where it is a sum of something else.

    Raises Refusal where it is a readout, but of no form that is known.
    """
    parts = [_factors(node) for _, node in var.blocks]
    if any(part is None for part in parts):  # the rest, of larger order, is all that counts
        return None
    terms = [(a, _summed(chain, weight, x, var, axes)) for part in parts for a, chain, weight, x in part or ()]
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


def _summed(chain: tuple[PositionMap, ...], weight: Weight, x: Node, var: Var, axes: tuple[int, ...]) -> Var:
    """sum over `axes` of L(weight) x."""
    shape, axis = var.shape, width_axis(var.layout)
    assert axis is not None
    along = weight.type.axis
    if weight.per_input:
        raise Refusal(
            "it sums a parameter times hidden coordinates, and the parameter is drawn anew for every input",
            "drop coordinates of hidden layers (nn.dropout), whose masks average out over the width; let readouts be ordinary parameters",
        )
    if along is None or weight.shape[along] != 1 or shape[axis] != 1:
        raise _refusal()
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
    layout: Layout = tuple(a for i, a in enumerate(var.layout) if i not in axes)
    return Var.of(total, layout, var.power + HALF)


def _filled(x: Node, shape: tuple[int, ...]) -> Node:
    """A deterministic array that was to be broadcast, in its full shape."""
    if x.type.shape == shape:
        return x
    axes = tuple(range(len(shape) - len(x.type.shape), len(shape)))
    return PositionMap(position("broadcast", to=shape, axes=axes), (x,), Type(x.type.kind, shape))


def _matrix(chain: tuple[PositionMap, ...], weight: Weight, along: int, axis: int) -> np.ndarray:
    """The map of positions as a matrix: from those of the weight to those of the product, without the axis of the width."""
    count = math.prod(weight.shape)
    final = chain[-1].type.shape if chain else weight.shape
    if count * math.prod(final) > MOST_ENTRIES:
        raise _refusal()
    # Where coordinates are, the types know: maps of positions cannot tell axes of size one from each other.
    places = [along, *(node.type.axis for node in chain)]
    shapes = [weight.shape, *(node.type.shape for node in chain)]
    if places[-1] != axis or any(at is None or shape[at] != 1 for at, shape in zip(places, shapes, strict=True)):
        raise _refusal()
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        units = jnp.eye(count).reshape((count, *weight.shape))
        for node in chain:
            units = jax.vmap(node.op)(units)
        found = np.asarray(units)
    return found.reshape((count, *(n for i, n in enumerate(final) if i != axis)))


def _refusal() -> Refusal:
    return Refusal(
        "it sums a parameter times hidden coordinates, but the parameter was changed entry by entry before",
        "use the parameter itself in the product (dot, matmul, einsum, or * and sum), scaled by a number at most",
    )
