"""Elementwise JAX primitives as scalar functions: one row per primitive.

A row maps SymPy arguments (and the equation's parameters) to a SymPy expression. That expression is what the theory
differentiates and integrates, and what the lowered code evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from sympy import Expr

from ntk_rules import functions as nf

__all__ = ["ELEMENTWISE"]

HALF = sympy.Rational(1, 2)


def _select(which: Expr, *cases: Expr) -> Expr:
    """lax.select_n: case 0 where the predicate is False."""
    return sympy.Piecewise((cases[1], which), (cases[0], True))


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


ELEMENTWISE: dict[str, Callable[..., Expr]] = {
    "add": _sum,
    "add_any": _sum,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "square": lambda a: a**2,
    "integer_pow": lambda a, *, y: a**y,
    "pow": lambda a, b: a**b,
    "sqrt": lambda a, **_: sympy.sqrt(a),
    "rsqrt": lambda a, **_: 1 / sympy.sqrt(a),
    "cbrt": lambda a, **_: sympy.sign(a) * sympy.Abs(a) ** sympy.Rational(1, 3),
    "abs": lambda a: sympy.Abs(a),
    "sign": lambda a: sympy.sign(a),
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
    "asinh": lambda a, **_: sympy.asinh(a),
    "erf": lambda a, **_: sympy.erf(a),
    "erfc": lambda a, **_: 1 - sympy.erf(a),
    "exp_neg_sq": lambda a, **_: sympy.exp(
        -(a**2)
    ),  # a function of JAX's, not a primitive: the slope of erf from JAX 0.12 on
    "eq": lambda a, b: sympy.Eq(a, b),
    "ne": lambda a, b: sympy.Ne(a, b),
    "lt": lambda a, b: sympy.Lt(a, b),
    "le": lambda a, b: sympy.Le(a, b),
    "gt": lambda a, b: sympy.Gt(a, b),
    "ge": lambda a, b: sympy.Ge(a, b),
    "and": lambda a, b: sympy.And(a, b),
    "or": lambda a, b: sympy.Or(a, b),
    "not": lambda a: sympy.Not(a),
    "select_n": _select,
    "convert_element_type": lambda a, **_: _to_number(a),
}


def expression(primitive: str, params: dict[str, Any], args: list[Expr]) -> Expr:
    """The scalar function of one equation applied to expressions."""
    kept = {k: v for k, v in params.items() if k == "y"}
    return ELEMENTWISE[primitive](*args, **kept)
