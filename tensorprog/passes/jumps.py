"""Coefficients of a Zdot without derivatives, for functions with jumps, or slopes with poles, of variables that have to be sampled.

With C_ij = E[Z^{u_i} Z^{u_j}] and b_i = E[Z^{u_i} Z^x] for the earlier products u_i = W^T y_i on which x depends, the coefficients
E[dZ^x / dZ^{u_i}] are (C^+ b)_i (Yang, Tensor Programs III, section 2). Nothing in it is a derivative, so that it can be sampled where a
delta function, the derivative of a jump, cannot, and where few samples carry the mean, as that of |u|^(-2/3), the slope of the cube root.
It costs digits where the u_i nearly coincide, and is no longer zero by structure, so that it is the second choice:
`ArrayOp("either", (mean derivative, this))`, between which the kernel stage decides.

A product at positions that are mixed on the way to x counts once for each of them. They stand along an axis in front, so that b and C are one
expectation for each product and each pair of products, however many positions there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import sympy

from tensorprog.ir import ArrayOp, MatMul, Moment, Node, Nonlin, Phi, PositionMap, Type, position, topological
from tensorprog.ir.phi import vector
from tensorprog.passes.slopes import is_leaf

__all__ = ["EITHER", "STEIN", "by_stein", "cannot_be_sampled"]

EITHER, STEIN = "either", "stein"
Links = Sequence[int | None]
_PRODUCT = Phi(vector(0) * vector(1), 2)


def cannot_be_sampled(slope: Node) -> bool:
    """Is there a delta function in a derivative, or a pole, as at zero in that of the cube root?"""
    inner = topological([slope], skip=is_leaf)
    return any(isinstance(n, Nonlin) and (n.phi.expr.has(sympy.DiracDelta) or _has_pole(n.phi.expr)) for n in inner)


def _has_pole(expr: sympy.Expr) -> bool:
    """Is there a negative power of what has a zero: of a line, a modulus or another choice between pieces?"""
    bases = (p.base for p in expr.atoms(sympy.Pow) if p.exp.is_negative and p.base.free_symbols)
    return any(isinstance(base, _PIECES) or _is_line(base) for base in bases)


_PIECES = (sympy.Abs, sympy.Max, sympy.Min, sympy.Piecewise)


def _is_line(expr: sympy.Expr) -> bool:
    return bool(expr.is_polynomial()) and sympy.Poly(expr, *expr.free_symbols).total_degree() == 1


def by_stein(x: Node, by: MatMul, family: Mapping[MatMul, Links]) -> ArrayOp:
    """E[dx / d by], at each place of the axes of `by` that are mixed on the way, in their order and as one axis in front, and at every
    position of x. family: all products with that matrix that x may depend on, each with the axis of x that carries each of its own."""
    shape, source = x.type.shape, x.source
    front = [_placed(u, links, x) for u, links in family.items()]
    sizes = tuple(u.type.shape[0] for u in front)
    with_x = [
        Moment(_PRODUCT, (u, _spread(x, (n, *shape), 1)), (), source=source) for u, n in zip(front, sizes, strict=True)
    ]
    covariances = []
    for i, (u, n) in enumerate(zip(front, sizes, strict=True)):
        for v, m in zip(front[i:], sizes[i:], strict=True):
            both = (n, m, *shape)
            pair = _spread(u, both, 2, (0,)), _spread(v, both, 2, (1,))
            covariances.append(Moment(_PRODUCT, pair, (), source=source))
    which = list(family).index(by)
    params = (("sizes", sizes), ("which", which))
    return ArrayOp(STEIN, params, (*with_x, *covariances), (sizes[which], *shape), source=source)


def _spread(u: Node, shape: tuple[int, ...], front: int, own: tuple[int, ...] = ()) -> Node:
    """A variable along more axes in front. own: which of those it has already."""
    axes = (*own, *range(front, len(shape)))
    if axes == tuple(range(len(shape))):
        return u
    assert u.type.axis is not None
    made = Type("vector", shape, axes[u.type.axis], u.type.width)
    return PositionMap(position("broadcast", to=shape, axes=axes), (u,), made, source=u.source)


def _placed(u: Node, links: Links, x: Node) -> Node:
    """A product at the positions of x, its mixed places along one axis in front."""
    shape, axis, width, own = x.type.shape, x.type.axis, x.type.width, u.type.shape
    assert axis is not None and u.type.axis is not None
    mixed = [i for i, link in enumerate(links) if link is None and i != u.type.axis]
    at = {i: axis if link is None else link for i, link in enumerate(links) if i not in mixed}
    kept = sorted(at, key=lambda i: at[i])
    order = (*mixed, *kept)
    current, place = u, len(mixed) + kept.index(u.type.axis)
    if order != tuple(range(len(own))):
        turned = Type("vector", tuple(own[i] for i in order), place, width)
        current = PositionMap(position("transpose", permutation=order), (u,), turned, source=u.source)
    count = math.prod(own[i] for i in mixed)
    thin = (count, *(own[i] for i in kept))
    if thin != current.type.shape:
        joined = Type("vector", thin, 1 + place - len(mixed), width)
        current = PositionMap(position("reshape", to=thin), (current,), joined, source=u.source)
    full = (count, *shape)
    if thin == full:
        return current
    spread = position("broadcast", to=full, axes=(0, *(1 + at[i] for i in kept)))
    return PositionMap(spread, (current,), Type("vector", full, 1 + axis, width), source=u.source)
