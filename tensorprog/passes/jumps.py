"""Coefficients of a Zdot without derivatives, for functions with jumps of variables that have to be sampled.

With C_ij = E[Z^{u_i} Z^{u_j}] and b_i = E[Z^{u_i} Z^x] for the earlier products u_i = W^T y_i on which x depends, the coefficients
E[dZ^x / dZ^{u_i}] are (C^+ b)_i (Yang, Tensor Programs III, section 2). Nothing in it is a derivative, so that it can be sampled where a
delta function, the derivative of a jump, cannot. It costs digits where the u_i nearly coincide, and is no longer zero by
structure, so that it is the second choice: `ArrayOp("either", (mean derivative, this))`, between which the kernel stage decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import sympy

from tensorprog.ir import ArrayOp, MatMul, Moment, Node, Nonlin, Phi, PositionMap, Type, position, topological
from tensorprog.ir.phi import vector
from tensorprog.passes.layouts import links_of
from tensorprog.passes.slopes import is_leaf

__all__ = ["EITHER", "MOST_MIXED", "STEIN", "by_stein", "has_delta"]

EITHER, STEIN = "either", "stein"
MOST_MIXED = 16  # products at their mixed positions, all of whose covariances are asked for
_PRODUCT = Phi(vector(0) * vector(1), 2)


def has_delta(slope: Node) -> bool:
    """Is there a delta function in a derivative?"""
    inner = topological([slope], skip=is_leaf)
    return any(isinstance(n, Nonlin) and n.phi.expr.has(sympy.DiracDelta) for n in inner)


def by_stein(x: Node, by: MatMul, family: Sequence[MatMul], place: Mapping[int, int]) -> Node | None:
    """E[dx / d by] at every position of x. family: all products with that matrix that `by` is correlated with. place: along the axes of
    `by` whose positions are mixed on the way, which one. None where they are too many."""
    placed: list[tuple[MatMul, dict[int, int], Node]] = []
    for product in family:
        links = links_of(x, product)
        if links is None:
            continue
        sizes = product.type.shape
        mixed = [i for i, (link, n) in enumerate(zip(links, sizes, strict=True)) if link is None and n > 1]
        if len(placed) + math.prod(sizes[i] for i in mixed) > MOST_MIXED:
            return None
        for at in itertools.product(*(range(sizes[i]) for i in mixed)):
            here = dict(zip(mixed, at, strict=True))
            placed.append((product, here, _placed(_cut(product, here), links, x)))
    vectors = [u for *_, u in placed]
    shape, source = x.type.shape, x.source
    covariances = [Moment(_PRODUCT, (u, v), (), source=source) for u in vectors for v in vectors]
    with_x = [Moment(_PRODUCT, (u, x), (), source=source) for u in vectors]
    (which,) = (i for i, (product, here, _) in enumerate(placed) if product is by and here == dict(place))
    return ArrayOp(STEIN, (("place", which),), (*with_x, *covariances), shape, source=source)


def _cut(u: MatMul, at: Mapping[int, int]) -> Node:
    """A product at some places of the axes that are mixed."""
    if not at:
        return u
    shape = u.type.shape
    start = tuple(at.get(i, 0) for i in range(len(shape)))
    stop = tuple(at[i] + 1 if i in at else n for i, n in enumerate(shape))
    op = position("slice", start=start, stop=stop, stride=(1,) * len(shape))
    return PositionMap(op, (u,), Type("vector", op.shape(shape), u.type.axis, u.type.width), source=u.source)


def _placed(u: Node, links: Sequence[int | None], x: Node) -> Node:
    """A product at the positions of x."""
    shape, axis, width = x.type.shape, x.type.axis, x.type.width
    kept = [i for i in range(len(links)) if links[i] is not None or i == u.type.axis]
    at = {i: axis if links[i] is None else links[i] for i in kept}
    order = sorted(kept, key=lambda i: at[i])  # type: ignore[arg-type, return-value]
    sizes = tuple(u.type.shape[i] for i in order)
    if order == list(range(len(links))) and sizes == shape:
        return u
    whole = (*order, *(i for i in range(len(links)) if i not in kept))
    turned = Type("vector", tuple(u.type.shape[i] for i in whole), whole.index(u.type.axis), width)
    moved = PositionMap(position("transpose", permutation=whole), (u,), turned, source=u.source)
    thin = Type("vector", sizes, order.index(u.type.axis), width)  # type: ignore[arg-type]
    flat = PositionMap(position("reshape", to=sizes), (moved,), thin, source=u.source)
    spread = position("broadcast", to=shape, axes=tuple(at[i] for i in order))
    return PositionMap(spread, (flat,), Type("vector", shape, axis, width), source=u.source)
