"""The standard form of kinked expressions: smooth functions times steps, of which the product rule is right.

SymPy drops the delta functions in derivatives of a Piecewise, and 3 H^2 delta is 3/4 delta where H^3 = H has derivative
delta. Written as N + (P - N) H, with every step once, derivatives by the product rule are those of distributions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import sympy as sp

from ntk_rules.functions import JUMPING
from ntk_rules.pieces import KINKED, branches, cut, has_kinks
from ntk_rules.regions import regions, written_out
from ntk_rules.switches import NotCuttable


@functools.lru_cache(maxsize=4096)
def canonical_kinks(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
    """`expr` with its kinked parts in steps: in one Gaussian F_0 + sum_i (F_i - F_{i-1}) H(z - a_i), in two N + (P - N) H(line).

    >>> u, v = sp.symbols("u v", real=True)
    >>> canonical_kinks(sp.tanh(sp.Max(u, v)) + u * v, (u, v))
    u*v + (tanh(u) - tanh(v))*Heaviside(u - v) + tanh(v)
    """
    if expr.has(sp.Piecewise):
        expr = _chosen_by_parameters(expr, zs)
    used = [z for z in zs if expr.has(z)]  # what rounds stays as it is: it has no finite number of steps
    if not used or not has_kinks(expr) or expr.has(sp.DiracDelta, *JUMPING):
        return expr
    if len(used) == 1:
        try:
            return _in_pieces(expr, used[0])
        except NotCuttable:
            return _by_parts(expr, zs)
    if expr.is_Add:
        return expr.func(*(canonical_kinks(a, zs) for a in expr.args))
    groups = _linked(sp.Mul.make_args(expr), zs)
    if len(groups) > 1:
        return sp.Mul(*(canonical_kinks(sp.Mul(*g), zs) for g in groups))
    if len(used) == 2 and not _separate(expr, zs):
        try:
            return written_out(regions(expr, (used[0], used[1])), (used[0], used[1]))
        except NotCuttable:
            return _by_parts(expr, zs)
    return _by_parts(expr, zs)


def _chosen_by_parameters(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
    """`expr` with a choice by parameters alone as a sum, s F + (1 - s) G with s = 1 or 0, which is a number to the Gaussians."""
    number = lambda condition: condition is not sp.true and not condition.has(*zs)

    def chosen(node: sp.Piecewise) -> sp.Expr:
        total = node.args[-1].expr
        for branch, condition in reversed(node.args[:-1]):
            share = sp.Piecewise((1, condition), (0, True))
            rest = total
            total = (
                share * branch + (1 - share) * rest
                if number(condition)
                else sp.Piecewise((branch, condition), (rest, True))
            )
        return total

    def is_choice(f: sp.Expr) -> bool:
        return (
            isinstance(f, sp.Piecewise)
            and f.has(*zs)
            and f.args[-1].cond is sp.true
            and any(number(c) for _, c in f.args)
        )

    return expr.replace(is_choice, chosen)


def _in_pieces(expr: sp.Expr, z: sp.Symbol) -> sp.Expr:
    first, *others = cut(expr, z)
    total, last = first.expr, first.expr
    for piece in others:
        total += (piece.expr - last) * sp.Heaviside(z - piece.low, sp.Rational(1, 2))
        last = piece.expr
    return total


def _separate(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> bool:
    """Whether every factor is a function of one Gaussian."""
    return all(sum(f.has(z) for z in zs) <= 1 for f in sp.Mul.make_args(expr))


def _linked(factors: tuple[sp.Expr, ...], zs: tuple[sp.Symbol, ...]) -> list[list[sp.Expr]]:
    """The factors in groups that share no Gaussian, so that no step occurs in two of them."""
    groups: list[tuple[set[sp.Symbol], list[sp.Expr]]] = []
    for factor in factors:
        mine = {z for z in zs if factor.has(z)}
        together = [g for g in groups if g[0] & mine]
        groups = [g for g in groups if not g[0] & mine]
        groups.append((mine.union(*(g[0] for g in together)), [f for g in together for f in g[1]] + [factor]))
    return [members for _, members in groups]


def _by_parts(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
    if isinstance(expr, sp.Heaviside | sp.DiracDelta) or not expr.args:
        return expr
    if isinstance(expr, KINKED) and expr.has(*zs):
        switch, positive, negative = branches(expr)
        step = sp.Heaviside(sp.expand(switch), sp.Rational(1, 2))
        if switch.has(*zs):
            return canonical_kinks(negative + (positive - negative) * step, zs)
        return expr
    if expr.is_Mul:  # factors in one Gaussian belong together: products of their steps collapse
        groups: dict[tuple[bool, ...], list[sp.Expr]] = {}
        for factor in expr.args:
            groups.setdefault(tuple(factor.has(z) for z in zs), []).append(factor)
        if len(groups) > 1:
            return sp.Mul(*(canonical_kinks(sp.Mul(*g), zs) for g in groups.values()))
    return expr.func(*(canonical_kinks(a, zs) for a in expr.args))


def jumps_of(expr: sp.Expr, z: sp.Symbol, symbols: Sequence[sp.Symbol]) -> list[tuple[sp.Expr, sp.Expr]] | None:
    """(delta function, height) of each jump along z; None where it cannot be read off the form. symbols: the variables.

    >>> u = sp.Symbol("u", real=True)
    >>> jumps_of(sp.Max(u, 0), u, (u,)), jumps_of(sp.Piecewise((u, u > 1), (0, True)), u, (u,))
    ([], [(DiracDelta(u - 1), 1)])
    """
    if not has_kinks(expr):
        return []
    if any(f.has(z) for f in expr.atoms(*JUMPING)):
        return None
    steps = canonical_kinks(expr, tuple(symbols))
    if any(steps.has(kind) for kind in KINKED if kind is not sp.Heaviside):
        return None
    jumps: dict[sp.Expr, sp.Expr] = {}
    for term in sp.Add.make_args(sp.expand_mul(sp.diff(steps, z))):
        deltas = term.atoms(sp.DiracDelta)
        if not deltas:
            continue
        delta = deltas.pop()
        rate = sp.diff(delta.args[0], z)
        rest = term / delta
        if deltas or len(delta.args) > 1 or rate == 0 or rate.has(z) or rest.has(sp.DiracDelta):
            return None
        height = rest.subs(z, z - sp.expand(delta.args[0]) / rate)
        jumps[delta] = jumps.get(delta, sp.Integer(0)) + height
    heights = ((delta, sp.simplify(height)) for delta, height in jumps.items())
    return [(delta, height) for delta, height in heights if height != 0]
