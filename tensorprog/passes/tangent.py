"""The tangent program: the network's derivative in an independent Gaussian direction of all its parameters.

    t(W x) = W t(x) + W' x      t(phi(x)) = sum_i d_i phi(x) t(x_i)      t(LinComb) = LinComb of t

with W' a fresh Gaussian weight. At any width the mean over directions of t_f(x) t_f(x') is exactly the NTK, so in
the limit NTK(x, x') = E[Z^{t_f(x)} Z^{t_f(x')}] (design note 2.3; it restates Yang, Tensor Programs II, theorem 2.1,
which sums over weights and pairs of uses, as one more program). It needs the readout to be an independent zero-mean
Gaussian, which `passes.conditions` checks; a Moment then has no tangent.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import sympy

from tensorprog.ir import (
    LinComb,
    MatMul,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Trsp,
    Weight,
    topological,
)  # fmt: skip
from tensorprog.ir.phi import vector

__all__ = ["tangent"]


def tangent(program: Program, only: str | None = None) -> Program | None:
    """The tangent program, or None when no parameter is trained (the NTK is then zero).

    only: the name of the one parameter that moves; the primed weights of several are independent, so that the NTK is the sum of
    the covariances of these programs.
    """
    known: dict[Node, Node | None] = {}
    for node in topological([program.output]):
        known[node] = _tangent(node, known, only)
    output = known[program.output]
    return None if output is None else replace(program, output=output)


def _moves(weight: Weight, only: str | None) -> bool:
    return bool(weight.tangent_std) and only in (None, weight.name)


def _tangent(node: Node, known: dict[Node, Node | None], only: str | None) -> Node | None:
    if node.type.kind == "scalar":
        return None
    match node:
        case Weight():
            return primed(node) if _moves(node, only) else None
        case MatMul(spec=spec, weight=weight, x=x):
            terms = []
            if (t := known[x]) is not None:
                terms.append(MatMul(spec, weight, t, source=node.source))
            if _moves(node.root, only):
                terms.append(MatMul(spec, _prime(weight), x, source=node.source))
            return _sum([(1.0, t) for t in terms], node)
        case LinComb(terms=terms):
            return _sum([(a, t) for a, x in terms if (t := known[x]) is not None], node)
        case PositionMap(op=op, args=args, result=result):
            first = known[args[0]]
            return None if first is None else PositionMap(op, (first, *args[1:]), result, source=node.source)
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            moving = [i for i, x in enumerate(xs) if known[x] is not None]
            if not moving:
                return None
            derivative = _derivative(phi, tuple(moving))
            if derivative.expr == 0:
                return None
            tangents = tuple(t for i in moving if (t := known[xs[i]]) is not None)
            return Nonlin(derivative, (*xs, *tangents), thetas, source=node.source)
    raise AssertionError(f"no tangent of {type(node).__name__}")


@lru_cache(maxsize=4096)
def _derivative(phi: Phi, moving: tuple[int, ...]) -> Phi:
    """sum_i d_i phi(z) t_i, the t_i standing behind the z's."""
    terms = [phi.diff(i) * vector(phi.n_vectors + k) for k, i in enumerate(moving)]
    return Phi(sympy.Add(*terms), phi.n_vectors + len(moving), phi.n_parameters)


def primed(weight: Weight) -> Weight:
    """The direction in which training moves a weight."""
    return replace(weight, std=weight.tangent_std, tangent_std=0.0, primed=True)


def _prime(weight: Node) -> Node:
    return Trsp(_prime(weight.matrix)) if isinstance(weight, Trsp) else primed(weight)  # type: ignore[arg-type]


def _sum(terms: list[tuple[float | Node, Node]], like: Node) -> Node | None:
    if not terms:
        return None
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return LinComb(tuple(terms), source=like.source)
