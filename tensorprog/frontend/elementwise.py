"""Elementwise JAX primitives as scalar functions: one row per primitive.

A row maps SymPy arguments (and the equation's parameters) to a SymPy expression. That expression is what the theory
differentiates and integrates, and what the lowered code evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import sympy
from sympy import Expr

from ntk_rules import functions as nf
from tensorprog.frontend.refusals import Refusal

__all__ = ["ELEMENTWISE"]

HALF = sympy.Rational(1, 2)


def _select(which: Expr, *cases: Expr) -> Expr:
    """lax.select_n: case 0 where the predicate is False."""
    return sympy.Piecewise((cases[1], which), (cases[0], True))


def _case(number: Expr, *cases: Expr) -> Expr:
    """lax.select_n of whole numbers. One that lies outside counts as the nearest, which JAX leaves open."""
    return sympy.Piecewise(*((case, number <= i) for i, case in enumerate(cases[:-1])), (cases[-1], True))


def _clamp(low: Expr, a: Expr, high: Expr) -> Expr:
    """lax.clamp, whose slope at its bounds is 0."""

    def above(x: Expr, y: Expr) -> Expr:
        return sympy.Heaviside(x - y, 0)

    slopes = {low: above(low, a) * above(high, low), a: above(a, low) * above(high, a), high: above(a, high)}
    rule = [part for x, slope in slopes.items() if x.free_symbols for part in (x, slope)]
    return nf.by_rule(sympy.Min(sympy.Max(a, low), high), *rule)


def _to_number(x: Expr) -> Expr:
    boolean = isinstance(x, sympy.logic.boolalg.Boolean)
    return sympy.Piecewise((1, x), (0, True)) if boolean else x


def _sum(a: Expr, b: Expr) -> Expr:
    """a + b, where max(c, d) + log(1 + exp(-|c - d|)), as JAX writes log(exp(c) + exp(d)), is softplus(c - d) + d: smooth, and with a
    slope that does not cancel.
    """
    for most, rest in ((a, b), (b, a)):
        if isinstance(most, sympy.Max) and isinstance(rest, nf.softplus) and len(most.args) == 2:
            c, d = sorted(most.args, key=lambda x: x.is_number)
            if rest == nf.softplus(-sympy.Abs(c - d)):
                return nf.softplus(c - d) + d
    return a + b


def _polynomial(x: Expr, *coefficients: Expr) -> Expr:
    """lax.polynomial, from JAX 0.12 on: the constant comes first."""
    return sum((c * x**k for k, c in enumerate(coefficients)), sympy.S.Zero)


def _differ(a: Expr, b: Expr) -> Expr:
    """Whether truth values differ. Known ones are numbers."""
    a, b = (sympy.sympify(bool(x)) if x.is_number else x for x in map(sympy.sympify, (a, b)))
    return sympy.Or(sympy.And(a, sympy.Not(b)), sympy.And(sympy.Not(a), b))


def _round(a: Expr, *, rounding_method: int) -> Expr:
    away = rounding_method == int(jax.lax.RoundingMethod.AWAY_FROM_ZERO)
    return nf.round_away(a) if away else nf.round_even(a)


def _angle(y: Expr, x: Expr) -> Expr:
    """lax.atan2: in one variable by functions of that, where the sign of the other is known."""
    if x.is_positive:
        return sympy.atan(y / x)
    if x.is_negative:
        return sympy.atan(y / x) + sympy.pi * sympy.Piecewise((1, y >= 0), (-1, True))
    if x.is_zero:
        return sympy.pi / 2 * sympy.sign(y)
    if y.is_zero:
        return sympy.pi * sympy.Piecewise((1, x < 0), (0, True))
    if y.is_positive or y.is_negative:
        return (1 if y.is_positive else -1) * sympy.pi / 2 - sympy.atan(x / y)
    return sympy.atan2(y, x)


def _of_number(name: str, function: Callable[..., Expr]) -> Callable[..., Expr]:
    """A function whose arguments but the last are numbers."""

    def row(*args: Expr) -> Expr:
        if not all(a.is_number for a in args[:-1]):
            raise Refusal(
                f"only the last argument of {name} may be hidden or depend on the input: JAX has no other derivative of it",
                "give the other arguments as numbers",
            )
        return function(*args)

    return row


ELEMENTWISE: dict[str, Callable[..., Expr]] = {
    "add": _sum,
    "add_any": _sum,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "square": lambda a: a**2,
    "polynomial": _polynomial,
    "integer_pow": lambda a, *, y: a**y,
    "pow": lambda a, b: a**b,
    "sqrt": lambda a, **_: sympy.sqrt(a),
    "rsqrt": lambda a, **_: 1 / sympy.sqrt(a),
    "cbrt": lambda a, **_: sympy.sign(a) * sympy.Abs(a) ** sympy.Rational(1, 3),
    "abs": lambda a: sympy.Abs(a),
    "sign": lambda a: sympy.sign(a),
    "floor": lambda a: nf.floor(a),
    "ceil": lambda a: nf.ceiling(a),
    "round": _round,
    "rem": lambda a, b: a - b * nf.trunc(a / b),
    "max": lambda a, b: sympy.Max(a, b),
    "min": lambda a, b: sympy.Min(a, b),
    "clamp": _clamp,
    "exp": lambda a, **_: sympy.exp(a),
    "exp2": lambda a, **_: sympy.exp(a * sympy.log(2)),
    "expm1": lambda a, **_: nf.expm1(a),
    "log": lambda a, **_: sympy.log(a),
    "log1p": lambda a, **_: nf.log1p(a),
    "logistic": lambda a, **_: nf.logistic(a),
    "tanh": lambda a, **_: sympy.tanh(a),
    "sin": lambda a, **_: sympy.sin(a),
    "cos": lambda a, **_: sympy.cos(a),
    "tan": lambda a, **_: sympy.tan(a),
    "sinh": lambda a, **_: sympy.sinh(a),
    "cosh": lambda a, **_: sympy.cosh(a),
    "asin": lambda a, **_: sympy.asin(a),
    "acos": lambda a, **_: sympy.acos(a),
    "atan": lambda a, **_: sympy.atan(a),
    "atan2": _angle,
    "asinh": lambda a, **_: sympy.asinh(a),
    "erf": lambda a, **_: sympy.erf(a),
    "erfc": lambda a, **_: 1 - sympy.erf(a),
    "acosh": lambda a, **_: sympy.acosh(a),
    "atanh": lambda a, **_: sympy.atanh(a),
    "erf_inv": lambda a, **_: sympy.erfinv(a),
    "lgamma": lambda a, **_: sympy.loggamma(a),
    "digamma": lambda a, **_: sympy.polygamma(0, a),
    "polygamma": _of_number("polygamma", sympy.polygamma),
    "igamma": _of_number("igamma", nf.igamma),
    "igammac": _of_number("igammac", nf.igammac),
    "regularized_incomplete_beta": _of_number("betainc", nf.betainc),
    "bessel_i0e": lambda a, **_: nf.NAMED["bessel_i0e"](a),
    "bessel_i1e": lambda a, **_: nf.NAMED["bessel_i1e"](a),
    "order_statistic": lambda k, *xs: nf.order_statistic(k, *xs),  # what sorting becomes (`frontend.ranks`)
    "has_rank": lambda k, i, *xs: nf.has_rank(k, i, *xs),
    "exp_neg_sq": lambda a, **_: sympy.exp(
        -(a**2)
    ),  # a function of JAX's, not a primitive: the slope of erf from JAX 0.12 on
    "eq": lambda a, b: sympy.Eq(a, b),
    "ne": lambda a, b: sympy.Ne(a, b),
    "lt": lambda a, b: sympy.Lt(a, b),
    "le": lambda a, b: sympy.Le(a, b),
    "lt_to": lambda a, b: sympy.Lt(a, b),  # in the total order, which tells the two zeros apart
    "le_to": lambda a, b: sympy.Le(a, b),
    "gt": lambda a, b: sympy.Gt(a, b),
    "ge": lambda a, b: sympy.Ge(a, b),
    "and": lambda a, b: sympy.And(a, b),
    "or": lambda a, b: sympy.Or(a, b),
    "xor": _differ,
    "not": lambda a: sympy.Not(a),
    "select_n": _select,
    "convert_element_type": lambda a, **_: _to_number(a),
}


def expression(primitive: str, params: dict[str, Any], args: list[Expr], boolean: bool = False) -> Expr:
    """The scalar function of one equation applied to expressions. boolean: of truth values?"""
    if boolean and primitive in ("eq", "ne"):
        return _differ(*args) if primitive == "ne" else sympy.Not(_differ(*args))
    if primitive == "select_n" and not boolean:
        return _case(*args)
    kept = {k: v for k, v in params.items() if k in ("y", "rounding_method")}
    return ELEMENTWISE[primitive](*args, **kept)
