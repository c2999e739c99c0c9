"""Stein's lemma where it leaves functions of fewer Gaussians: E[u_i G] = sum_j C_ij E[d_j G].

A factor that is a Gaussian alone, as the sums of a normalised tangent have them, would make an expectation of three or four
arguments at every combination of their positions; taken out, it is a matrix product of covariances with an expectation of
two.
"""

from __future__ import annotations

from functools import cache

import sympy

from ntk_rules.functions import JUMPING, order_statistic
from ntk_rules.steps import canonical_kinks

__all__ = ["argument", "by_stein", "dependent"]

Independent = frozenset[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]


@cache
def argument(i: int) -> sympy.Symbol:
    """The i-th Gaussian of an expectation."""
    return sympy.Symbol(f"u{i}", real=True)


def dependent(i: int, j: int, independent: Independent) -> bool:
    """May the two be correlated?"""
    return i == j or (min(i, j), max(i, j)) not in independent


def by_stein(product: sympy.Expr, independent: Independent) -> list[tuple[sympy.Expr, Pairs]]:
    """E[product] as a sum of products: expressions, each with the pairs whose covariances multiply it."""
    done: list[tuple[sympy.Expr, Pairs]] = []
    waiting: list[tuple[sympy.Expr, Pairs]] = [(product, ())]
    while waiting:
        expr, pairs = waiting.pop()
        parts = _step(expr, independent)
        if parts is None:
            done.append((expr, pairs))
        else:
            waiting.extend((part, (*pairs, pair)) for part, pair in parts)
    if any(_is_too_singular(expr) for expr, _ in done):
        return [(product, ())]
    return done


def _step(expr: sympy.Expr, independent: Independent) -> list[tuple[sympy.Expr, tuple[int, int]]] | None:
    """Take out one factor that is an argument alone; None where there is none among three arguments or more."""
    for factor in sympy.Mul.make_args(expr):
        if not (factor.is_Symbol and factor.name.startswith("u")):
            continue
        i, rest = int(factor.name[1:]), expr / factor
        others = [j for j in _indices(rest) if dependent(i, j, independent)]
        if rest.has(factor) or len(others) < 2 or rest.has(sympy.DiracDelta):
            continue
        smooth = canonical_kinks(rest, tuple(map(argument, _indices(rest))))
        if smooth.has(sympy.Piecewise, sympy.Abs, sympy.Max, sympy.Min, sympy.sign, order_statistic, *JUMPING):
            return None
        parts = []
        for j in others:
            slope = sympy.expand_mul(sympy.diff(smooth, argument(j)))
            parts += [(part, (i, j)) for part in sympy.Add.make_args(slope) if not _vanishes(part)]
        return parts
    return None


def _indices(expr: sympy.Expr) -> list[int]:
    return sorted(int(s.name[1:]) for s in expr.free_symbols if s.name.startswith("u"))


def _vanishes(part: sympy.Expr) -> bool:
    """Zero, or u delta(u)."""
    factors = sympy.Mul.make_args(part)
    return part == 0 or any(isinstance(f, sympy.DiracDelta) and f.args[0] in factors for f in factors)


def _is_too_singular(expr: sympy.Expr) -> bool:
    """More than one delta function: a density, which has no limit where two arguments coincide."""
    deltas = [f for f in sympy.Mul.make_args(expr) if f.has(sympy.DiracDelta)]
    return len(deltas) > 1 or any(not isinstance(d, sympy.DiracDelta) or len(d.args) > 1 for d in deltas)
