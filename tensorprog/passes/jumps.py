"""Coefficients of a Zdot without derivatives, for functions with jumps of variables that have to be sampled.

With C_ij = E[Z^{u_i} Z^{u_j}] and b_i = E[Z^{u_i} Z^x] for the earlier products u_i = W^T y_i on which x depends, the coefficients
E[dZ^x / dZ^{u_i}] are (C^+ b)_i (Yang, Tensor Programs III, section 2). Nothing in it is a derivative, so that it can be sampled where a
delta function, the derivative of a jump, cannot. It costs digits where the u_i nearly coincide, and is no longer zero by
structure, so that it is the second choice: `ArrayOp("either", (mean derivative, this))`, between which the kernel stage decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from tensorprog.ir import ArrayOp, MatMul, Moment, Node, Nonlin, Phi, PositionMap, Type, position, topological
from tensorprog.ir.phi import vector
from tensorprog.passes.layouts import links_of
from tensorprog.passes.slopes import is_leaf

__all__ = ["EITHER", "STEIN", "by_stein", "has_delta"]

EITHER, STEIN = "either", "stein"
_PRODUCT = Phi(vector(0) * vector(1), 2)


def has_delta(slope: Node) -> bool:
    """Is there a delta function in a derivative?"""
    inner = topological([slope], skip=is_leaf)
    return any(isinstance(n, Nonlin) and n.phi.expr.has(sympy.DiracDelta) for n in inner)


def by_stein(x: Node, by: MatMul, family: Sequence[MatMul]) -> Node | None:
    """E[dx / d by] at every position of x; None where positions are mixed on the way. family: all products with that matrix
    that `by` is correlated with."""
    placed = []
    for product in family:
        links = links_of(x, product)
        if links is None:
            continue
        if any(link is None and n > 1 for link, n in zip(links, product.type.shape, strict=True)):
            return None
        placed.append((product, _placed(product, links, x)))
    vectors = [u for _, u in placed]
    shape, source = x.type.shape, x.source
    covariances = [Moment(_PRODUCT, (u, v), (), source=source) for u in vectors for v in vectors]
    with_x = [Moment(_PRODUCT, (u, x), (), source=source) for u in vectors]
    (place,) = (i for i, (product, _) in enumerate(placed) if product is by)
    return ArrayOp(STEIN, (("place", place),), (*with_x, *covariances), shape, source=source)


def _placed(u: MatMul, links: Sequence[int | None], x: Node) -> Node:
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
