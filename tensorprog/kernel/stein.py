"""Stein's lemma where it leaves functions of fewer Gaussians: E[u_i G] = sum_j C_ij E[d_j G].

A factor that is a Gaussian alone, as the sums of a normalised tangent have them, would make an expectation of three or four
arguments at every combination of their positions; taken out, it is a matrix product of covariances with an expectation of
two. A power of one, beside functions that have no closed form, is taken out in the same way, one factor after the other:
E[u_i^n R] = (n - 1) C_ii E[u_i^(n-2) R] + sum_j C_ij E[u_i^(n-1) d_j R] for R free of u_i.
"""

from __future__ import annotations

from functools import cache, lru_cache

import sympy

from ntk_rules.functions import JUMPING, order_statistic
from ntk_rules.parse import Unparsed, parse
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
        u, power = factor.as_base_exp()
        if not (u.is_Symbol and u.name.startswith("u") and power.is_Integer and power > 0):
            continue
        i, rest = int(u.name[1:]), expr / factor
        others = [j for j in _indices(rest) if dependent(i, j, independent)]
        if rest.has(u) or rest.has(sympy.DiracDelta):
            continue
        if (power > 1 or len(others) < 2) and not _is_needed(i, expr, independent):
            continue
        smooth = canonical_kinks(rest, tuple(map(argument, _indices(rest))))
        if smooth.has(sympy.Piecewise, sympy.Abs, sympy.Max, sympy.Min, sympy.sign, order_statistic, *JUMPING):
            return None
        parts = [((power - 1) * u ** (power - 2) * rest, (i, i))] if power > 1 else []
        for j in others:
            slopes = [u ** (power - 1) * slope for slope in _slopes(smooth, argument(j))]
            parts += [(slope, (i, j)) for slope in slopes if not _vanishes(slope)]
        return parts
    return None


def _slopes(product: sympy.Expr, u: sympy.Symbol) -> list[sympy.Expr]:
    """The addends of d product / du. What is a smooth function of u alone, and has no closed form, stays one: every function is integrated."""
    factors = sympy.Mul.make_args(product)
    alone = [f for f in factors if _indices(f) == _indices(u) and not f.as_base_exp()[0].is_Symbol]
    if not alone or product.has(sympy.Heaviside) or _has_closed_form(sympy.Mul(*alone)):
        return list(sympy.Add.make_args(sympy.expand_mul(sympy.diff(product, u))))
    function, rest = sympy.Mul(*alone), sympy.Mul(*(f for f in factors if f not in alone))
    beside = [function * part for part in sympy.Add.make_args(sympy.expand_mul(sympy.diff(rest, u)))]
    return [rest * sympy.diff(function, u), *(part for part in beside if part != 0)]


def _is_needed(i: int, product: sympy.Expr, independent: Independent) -> bool:
    """Does the i-th argument hang together with two others or more, in functions without closed form?"""
    factors = [(factor, set(_indices(factor))) for factor in sympy.Mul.make_args(product)]
    linked, before = {i}, set[int]()
    while linked != before:
        before = linked
        near = (used for _, used in factors if any(dependent(j, k, independent) for j in used for k in before))
        linked = before.union(*near)
    return len(linked) > 2 and not _has_closed_form(sympy.Mul(*(factor for factor, used in factors if used & linked)))


@lru_cache(maxsize=4096)
def _has_closed_form(expr: sympy.Expr) -> bool:
    """Is it of the functions whose powers and products are exact as they stand?"""
    symbols = tuple(map(argument, _indices(expr)))
    try:
        parse(canonical_kinks(expr, symbols), symbols)
    except Unparsed:
        return False
    return True


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
