"""Stein's lemma where it leaves functions of fewer Gaussians: E[u_i^n G] = (n - 1) C_ii E[u_i^(n-2) G] + sum_j C_ij E[u_i^(n-1) d_j G].

A factor that is a Gaussian alone, as the sums of a normalised tangent have them, would make an expectation of three or four
arguments at every combination of their positions; taken out, it is a matrix product of covariances with an expectation of
two. G is without u_i. A power of a Gaussian is taken out where the closed forms of `ntk_rules` do not reach what it multiplies:
of three arguments and more there are no others.
"""

from __future__ import annotations

from functools import cache

import sympy

from ntk_rules.errors import NoRule
from ntk_rules.functions import JUMPING, order_statistic
from ntk_rules.parse import Unparsed, parse
from ntk_rules.steps import canonical_kinks

__all__ = ["argument", "by_stein", "dependent"]

Independent = frozenset[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]
Addend = tuple[sympy.Expr, sympy.Expr, Pairs]  # a number, an expression, and the pairs whose covariances multiply it
Slope = tuple[sympy.Expr, sympy.Expr]  # a number and an expression: SymPy would multiply out 2 (a + b)


@cache
def argument(i: int) -> sympy.Symbol:
    """The i-th Gaussian of an expectation."""
    return sympy.Symbol(f"u{i}", real=True)


def dependent(i: int, j: int, independent: Independent) -> bool:
    """May the two be correlated?"""
    return i == j or (min(i, j), max(i, j)) not in independent


def by_stein(product: sympy.Expr, independent: Independent) -> list[Addend]:
    """E[product] as a sum of products: numbers and expressions, each with the pairs whose covariances multiply it. What different orders
    of taking factors out have in common is one addend."""
    done: dict[tuple[sympy.Expr, Pairs], sympy.Expr] = {}
    waiting: dict[tuple[sympy.Expr, Pairs], sympy.Expr] = {(product, ()): sympy.S.One}
    while waiting:
        (expr, pairs), number = waiting.popitem()
        parts = _step(expr, independent)
        if parts is None:
            done[expr, pairs] = done.get((expr, pairs), sympy.S.Zero) + number
            continue
        for multiple, part, pair in parts:
            key = part, tuple(sorted((*pairs, pair)))
            waiting[key] = waiting.get(key, sympy.S.Zero) + number * multiple
    if any(_is_too_singular(expr) for expr, _ in done):
        return [(sympy.S.One, product, ())]
    return [(number, *key) for key, number in done.items() if number != 0]


def _step(expr: sympy.Expr, independent: Independent) -> list[tuple[sympy.Expr, sympy.Expr, tuple[int, int]]] | None:
    """Take out one factor that is an argument alone, or its power; None where there is none among three arguments or more."""
    for factor in sympy.Mul.make_args(expr):
        alone = _power(factor)
        if alone is None:
            continue
        (i, n), rest = alone, expr / factor
        others = [j for j in _indices(rest) if dependent(i, j, independent)]
        if rest.has(argument(i)) or rest.has(sympy.DiracDelta):
            continue
        if (n > 1 or len(others) < 2) and not _is_needed(i, expr, independent):
            continue
        smooth = canonical_kinks(rest, tuple(map(argument, _indices(rest))))
        if smooth.has(sympy.Piecewise, sympy.Abs, sympy.Max, sympy.Min, sympy.sign, order_statistic, *JUMPING):
            return None
        multiple, left = rest.as_coeff_Mul()
        parts = [((n - 1) * multiple, argument(i) ** (n - 2) * left, (i, i))] if n > 1 else []
        for j in others:
            pair = min(i, j), max(i, j)
            parts += [(c, argument(i) ** (n - 1) * part, pair) for c, part in _slopes(smooth, j) if not _vanishes(part)]
        return parts
    return None


def _power(factor: sympy.Expr) -> tuple[int, int] | None:
    """Which argument it is, and its power; None where it is another function."""
    base, exponent = factor.as_base_exp()
    if not (base.is_Symbol and base.name.startswith("u") and exponent.is_Integer and exponent > 0):
        return None
    return int(base.name[1:]), int(exponent)


def _is_needed(i: int, expr: sympy.Expr, independent: Independent) -> bool:
    """Do three arguments or more hang together, the i-th among them, in a function without closed form?"""
    factors = [(f, set(_indices(f))) for f in sympy.Mul.make_args(expr)]
    linked, before = {i}, set[int]()
    while linked != before:
        before = linked
        near = (used for _, used in factors if any(dependent(j, k, independent) for j in used for k in before))
        linked = before.union(*near)
    if len(linked) < 3:
        return False
    symbols = tuple(map(argument, sorted(linked)))
    held = sympy.Mul(*(f for f, used in factors if used & linked))
    try:
        parse(canonical_kinks(held, symbols), symbols)
    except Unparsed:
        return True
    except NoRule:  # infinite: who asks for the expectation says where
        return False
    return False


def _slopes(smooth: sympy.Expr, j: int) -> list[Slope]:
    """The addends of d_j. Of a function without kinks what concerns the same arguments stays one factor: one question, not one for every
    addend of a higher derivative."""
    if smooth.has(sympy.Heaviside, sympy.DiracDelta):
        slope = sympy.expand_mul(sympy.diff(smooth, argument(j)))
        return [part.as_coeff_Mul() for part in sympy.Add.make_args(slope)]
    groups: dict[tuple[int, ...], sympy.Expr] = {}
    for factor in sympy.Mul.make_args(smooth):
        used = tuple(_indices(factor))
        groups[used] = groups.get(used, sympy.S.One) * factor
    number, constant = groups.pop((), sympy.S.One).as_coeff_Mul()
    found = []
    for used, group in groups.items():
        if j in used:
            multiple, slope = sympy.expand_mul(sympy.diff(group, argument(j))).as_coeff_Mul()
            found.append((number * multiple, sympy.Mul(slope, constant, *(g for k, g in groups.items() if k != used))))
    return found


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
