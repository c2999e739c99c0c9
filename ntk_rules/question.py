"""Canonical questions: E[F] up to renaming of symbols, and the questions that are its derivatives."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import sympy as sp

from ntk_rules.errors import NoRule
from ntk_rules.functions import JUMPING
from ntk_rules.pieces import has_kinks
from ntk_rules.steps import canonical_kinks
from ntk_rules.terms import Term, differentiate, differentiate_parameter


@functools.cache
def gaussian_symbols(n: int) -> tuple[sp.Symbol, ...]:
    """z_0, z_1, ...: the Gaussians of a canonical question."""
    return tuple(sp.Symbol(f"z_{i}", real=True) for i in range(n))


@functools.cache
def _parameter_symbol(k: int, positive: bool | None) -> sp.Symbol:
    return sp.Symbol(f"a{k}", positive=True) if positive else sp.Symbol(f"a{k}", real=True)


@dataclass(frozen=True)
class Question:
    """E[expr] over `gaussians` Gaussians; `terms`, when given, are its normal form, and all there is where expr is None."""

    expr: sp.Expr | None
    terms: tuple[Term, ...] | None
    gaussians: int
    signs: tuple[bool, ...]  # of the parameters: True where the caller declared it positive
    independent: frozenset[tuple[int, int]]
    tolerance: float | None
    written: sp.Expr | None = (
        None  # expr as it was given, with its values at kinks; None where it has none, and of derivatives
    )

    @property
    def parameters(self) -> int:
        return len(self.signs)

    def parameter_symbols(self) -> tuple[sp.Symbol, ...]:
        return tuple(_parameter_symbol(k, sign) for k, sign in enumerate(self.signs))


def canonical(
    expr: sp.Expr,
    gaussians: tuple[sp.Symbol, ...],
    parameters: tuple[sp.Symbol, ...],
    means: tuple[sp.Expr, ...] | None,
    independent: frozenset[tuple[int, int]],
    tolerance: float | None,
) -> Question:
    """The question with standard names; means become shifts of the arguments."""
    signs = tuple(bool(p.is_positive) for p in parameters)
    zs = gaussian_symbols(len(gaussians))
    names = {p: _parameter_symbol(k, sign) for k, (p, sign) in enumerate(zip(parameters, signs, strict=True))}
    moves = means or (sp.S.Zero,) * len(zs)
    arguments = {g: z + sp.sympify(m).xreplace(names) for g, z, m in zip(gaussians, zs, moves, strict=True)}
    given = expr.xreplace({**names, **arguments})
    standard = canonical_kinks(given, zs)
    written = given if has_kinks(given) and not given.has(sp.DiracDelta) else None
    return Question(standard, None, len(zs), signs, independent, tolerance, written)


def cov_derivative(question: Question, entry: tuple[int, int]) -> Question | None:
    """Price's theorem: the question whose answer is dE[F]/dC_ij."""
    i, j = entry
    _check_steps(question, gaussian_symbols(question.gaussians))
    half = sp.Rational(1, 2) if i == j else sp.S.One
    if question.terms is not None:
        first = [d for t in question.terms for d in differentiate(t, i)]
        second = [replace(d, coefficient=half * d.coefficient) for t in first for d in differentiate(t, j)]
        return (
            replace(question, expr=_second_derivative(question, entry), terms=tuple(second), written=None)
            if second
            else None
        )
    expr = _second_derivative(question, entry)
    return replace(question, expr=expr, written=None) if expr != 0 else None


def _check_steps(question: Question, symbols: tuple[sp.Symbol, ...]) -> None:
    """Raise NoRule where the derivative is no function: that of rounding is a comb of delta functions."""
    if question.expr is not None and any(f.has(*symbols) for f in question.expr.atoms(*JUMPING)):
        raise NoRule(
            f"the derivative of {question.expr} has delta functions at infinitely many places, or along a line"
        )


def _second_derivative(question: Question, entry: tuple[int, int]) -> sp.Expr | None:
    """Half of it in one Gaussian; None where only the normal form is known."""
    if question.expr is None:
        return None
    i, j = entry
    half = sp.Rational(1, 2) if i == j else sp.S.One
    zs = gaussian_symbols(question.gaussians)
    return half * _by_factor(_by_factor(question.expr, zs, i), zs, j)


def _by_factor(expr: sp.Expr, zs: tuple[sp.Symbol, ...], i: int) -> sp.Expr:
    """d expr / d z_i; a product keeps the factors in other Gaussians apart, so that it stays a product."""
    mine: list[sp.Expr] = []
    others: list[sp.Expr] = []
    for factor in sp.Mul.make_args(expr):
        (mine if factor.has(zs[i]) else others).append(factor)
    if any(factor.has(*(z for z in zs if z != zs[i])) for factor in mine):
        return sp.diff(expr, zs[i])
    return sp.Mul(sp.diff(sp.Mul(*mine), zs[i]), *others)


def parameter_derivative(question: Question, k: int) -> Question | None:
    """The question whose answer is dE[F]/d a_k."""
    a = question.parameter_symbols()[k]
    _check_steps(question, (a,))
    if question.terms is not None:
        moved = (d for t in question.terms for d in differentiate_parameter(t, a))
        smooth = (replace(d, coefficient=_without_jumps(d.coefficient, ())) for d in moved)
        changed = tuple(d for d in smooth if d.coefficient != 0)
        return replace(question, expr=None, terms=changed, written=None) if changed else None
    expr = _without_jumps(sp.diff(question.expr, a), gaussian_symbols(question.gaussians))
    return replace(question, expr=expr, written=None) if expr != 0 else None


def _without_jumps(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
    """`expr` without delta functions of parameters alone: sign(a) has the slope zero, as in JAX, also where it jumps."""
    if not expr.has(sp.DiracDelta):
        return expr
    return expr.replace(lambda f: isinstance(f, sp.DiracDelta) and not f.has(*zs), lambda f: sp.S.Zero)
