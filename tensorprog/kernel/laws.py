"""Laws: products of functions of Gaussians, as sums of products of expectations that every layer of one kind asks for alike.

Of the factors of a product, addends are opened where they are linear in an argument or fall into independent parts, Stein's lemma takes
powers out (`kernel.stein`), and what is left is split into groups of arguments that are independent of each other. SymPy alone; which
arguments are which vectors is known to `kernel.expectations`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import sympy

from ntk_rules import Expectation, NoRule, expectation
from tensorprog.ir.phi import parameter, vector
from tensorprog.kernel.stein import argument as _u
from tensorprog.kernel.stein import by_stein, dependent

__all__ = ["Factor", "Law", "Product", "compares_many", "has_rule", "products_of", "rule_of", "unsampled"]

UNSAMPLED = (
    1e-6  # a tolerance that sampling does not meet: whole fields are sampled at once instead, in `kernel.fields`
)


@dataclass(frozen=True)
class Law:
    """A canonical expectation of u0, u1, .. given b0, b1, ..: the same for every layer that asks for it."""

    expr: sympy.Expr
    n_arguments: int
    n_parameters: int
    independent: frozenset[tuple[int, int]]

    @property
    def is_covariance(self) -> bool:
        return self.n_parameters == 0 and (
            (self.n_arguments == 2 and self.expr == _u(0) * _u(1))
            or (self.n_arguments == 1 and self.expr == _u(0) ** 2)
        )


def _b(i: int, positive: bool) -> sympy.Symbol:
    """The symbol of a parameter; of a positive one the rules may know on which side of a step it leaves its argument."""
    return sympy.Symbol(f"b{i}", positive=True) if positive else sympy.Symbol(f"b{i}", real=True)


def _given(expr: sympy.Expr) -> list[sympy.Symbol]:
    """The parameters of an expression, in order."""
    return sorted((s for s in expr.free_symbols if s.name.startswith("b")), key=lambda s: int(s.name[1:]))


Factor = tuple[sympy.Expr, tuple[int, ...], tuple[int, ...]]
Part = tuple[Law, tuple[int, ...], tuple[int, ...]]
Product = tuple[float, tuple[Part, ...]]


@lru_cache(maxsize=4096)
def products_of(
    factors: tuple[Factor, ...], independent: frozenset[tuple[int, int]], positive: frozenset[int]
) -> tuple[Product, ...]:
    """The product of the factors as a sum of products of expectations of independent groups of arguments."""
    sums = [[a for part in _linear_parts(*factor, positive) for a in _apart(part, independent)] for factor in factors]
    found = []
    for choice in itertools.product(*sums):
        for number, expr, pairs in by_stein(sympy.Mul(*choice), independent):
            covariances = tuple(_part(sorted({i, j}), _u(i) * _u(j), independent) for i, j in pairs)
            rest = _groups(expr, independent) if expr != 1 or not pairs else ()
            rest = tuple(_either_way(part, independent) for part in rest) if pairs else rest
            found.append((float(number), (*covariances, *rest)))
    return tuple(found)


def _linear_parts(
    expr: sympy.Expr, xs: tuple[int, ...], thetas: tuple[int, ...], positive: frozenset[int]
) -> list[sympy.Expr]:
    """The addends of a factor, opened only where it is linear in some arguments: sum_i c_i(z) t_i .. s_i."""
    swap = {vector(k): _u(i) for k, i in enumerate(xs)} | {
        parameter(k): _b(i, i in positive) for k, i in enumerate(thetas)
    }
    parts = [expr.xreplace(swap)]
    for t in dict.fromkeys(map(_u, xs)):
        parts = [piece for part in parts for piece in _opened(part, t)]
    return parts


def _opened(expr: sympy.Expr, t: sympy.Symbol) -> list[sympy.Expr]:
    """Its value at t = 0 and its multiple of t, where it is linear in t."""
    if not _is_linear(expr, t):
        return [expr]
    multiple, rest = expr.diff(t) * t, expr.xreplace({t: sympy.Integer(0)})
    return [part for part in (multiple, rest) if part != 0]


def _apart(part: sympy.Expr, independent: frozenset[tuple[int, int]]) -> list[sympy.Expr]:
    """The addends of a function of independent arguments, as a gate's two branches: each falls apart by itself. The slope of a function of
    one argument times the tangent of that is one addend: it falls apart as it is."""
    used = _used(part)
    if not any(pair in independent for pair in itertools.combinations(used, 2)):
        return [part]
    if all(len(_used(factor)) < 2 for factor in _factors(part)) and not part.has(sympy.DiracDelta):
        return [part]
    return list(sympy.Add.make_args(sympy.expand_mul(part)))


def _used(expr: sympy.Expr) -> list[int]:
    """Which arguments an expression has."""
    return sorted(int(s.name[1:]) for s in expr.free_symbols if s.name.startswith("u"))


def _is_linear(expr: sympy.Expr, symbol: sympy.Symbol) -> bool:
    if expr.is_Mul:
        (depends,) = held if len(held := [f for f in expr.args if f.has(symbol)]) == 1 else (None,)
        return depends is not None and _is_linear(depends, symbol)
    if expr.is_Add:
        return all(not part.has(symbol) or _is_linear(part, symbol) for part in expr.args)
    return expr == symbol


def _groups(product: sympy.Expr, independent: frozenset[tuple[int, int]]) -> tuple[Part, ...]:
    """Split a product into factors whose arguments are independent of each other."""
    groups: list[tuple[set[int], list[sympy.Expr]]] = []
    constant: list[sympy.Expr] = []
    for factor in _factors(product):
        indices = {int(s.name[1:]) for s in factor.free_symbols if s.name.startswith("u")}
        if not indices:
            constant.append(factor)
            continue
        joined = [g for g in groups if any(dependent(i, j, independent) for i in g[0] for j in indices)]
        groups = [g for g in groups if g not in joined]
        groups.append((indices.union(*(g[0] for g in joined)), [f for g in joined for f in g[1]] + [factor]))
    if not groups:
        groups = [(set(), [])]
    groups[0][1].extend(constant)
    return tuple(_part(sorted(indices), sympy.Mul(*parts), independent) for indices, parts in groups)


def _factors(product: sympy.Expr) -> list[sympy.Expr]:
    parts: list[sympy.Expr] = []
    for factor in sympy.Mul.make_args(product):
        if factor.is_Pow and factor.exp.is_Integer and factor.exp > 0 and factor.base.is_Mul:
            parts.extend(part**factor.exp for part in factor.base.args)
        else:
            parts.append(factor)
    return parts


def _part(indices: list[int], expr: sympy.Expr, independent: frozenset[tuple[int, int]]) -> Part:
    given = _given(expr)
    swap = {_u(i): _u(k) for k, i in enumerate(indices)} | {s: _b(k, bool(s.is_positive)) for k, s in enumerate(given)}
    pairs = frozenset((k, m) for m, j in enumerate(indices) for k, i in enumerate(indices[:m]) if (i, j) in independent)
    return (
        Law(expr.xreplace(swap), len(indices), len(given), pairs),
        tuple(indices),
        tuple(int(s.name[1:]) for s in given),
    )


def _either_way(part: Part, independent: frozenset[tuple[int, int]]) -> Part:
    """E[f(u) g(v)] and E[g(u) f(v)] as one law: Stein's lemma leaves derivatives of every order of one function of both."""
    law, indices, given = part
    if len(indices) != 2 or law.independent or given:
        return part
    swapped = law.expr.xreplace({_u(0): _u(1), _u(1): _u(0)})
    if sympy.default_sort_key(law.expr) <= sympy.default_sort_key(swapped):
        return part
    return replace(law, expr=swapped), indices[::-1], given


@lru_cache(maxsize=4096)
def has_rule(law: Law, tolerance: float | None) -> bool:
    """Is there one that does not sample? A kernel samples by `fields` and `population`, which know their standard errors."""
    try:
        return not rule_of(law, tolerance).sampled
    except NoRule:
        return False


@lru_cache(maxsize=4096)
def compares_many(expr: sympy.Expr) -> bool:
    """Does it ask for the largest of three Gaussians or more? Where these are equal, as patches that are pooled may be, closed forms divide
    what is left of the variances of their differences by each other, which is rounding."""
    if any(len(_compared(part)) > 2 for part in expr.atoms(sympy.Max, sympy.Min)):
        return True
    steps = [used for step in expr.atoms(sympy.Heaviside) if len(used := _compared(step)) > 1]
    return any(a & b and a != b for a, b in itertools.combinations(steps, 2))


def _compared(expr: sympy.Expr) -> set[str]:
    """The Gaussians that a function of a law, or of an instruction, has."""
    return {s.name for s in expr.free_symbols if s.name.startswith(("u", "z"))}


@lru_cache(maxsize=4096)
def rule_of(law: Law, tolerance: float | None) -> Expectation:
    """The rule for it; NoRule where there is none. Of more than two Gaussians none that samples more coarsely than a quadrature."""
    arguments = tuple(_u(i) for i in range(law.n_arguments))
    given = tuple(_given(law.expr))
    pairs = tuple(sorted(law.independent))
    if law.n_arguments > 2:
        tolerance = unsampled(tolerance)
    return expectation(law.expr, arguments, given, independent=pairs, tolerance=tolerance)


def unsampled(tolerance: float | None) -> float | None:
    """A tolerance that sampling does not meet, for laws that have a rule by quadrature; None where only closed forms are asked for."""
    return None if tolerance is None else min(tolerance, UNSAMPLED)
