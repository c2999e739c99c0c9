"""Bounds of an expression over an interval, rounded outward: what is proved here holds in exact arithmetic.

The natural interval extension (R. E. Moore, "Interval Analysis", 1966), ends of the line included. A function without a
row is bounded by nothing, so that it decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy as sp

from ntk_rules.functions import expm1, log1p, logistic, softplus

Interval = tuple[float, float]
LINE: Interval = (-math.inf, math.inf)
_ULPS = 4  # more than the C library's functions are off


def bounds(expr: sp.Expr, z: sp.Symbol, over: Interval) -> Interval:
    """An interval that holds `expr` at every z of `over`; `expr` has no other symbol.

    >>> z = sp.Symbol("z", real=True)
    >>> low, high = bounds(z * logistic(z) - 1, z, (2.0, math.inf))
    >>> low > 0.7, high
    (True, inf)
    """
    if expr == z:
        return over
    if expr.is_number:
        return _outward(float(expr), float(expr)) if expr.is_real else LINE
    if isinstance(expr, sp.Pow):
        return _power(expr, z, over)
    inner = [bounds(a, z, over) for a in expr.args]
    if isinstance(expr, sp.Add):
        return _sum(inner)
    if isinstance(expr, sp.Mul):
        total = (1.0, 1.0)
        for factor in inner:
            total = _times(total, factor)
        return total
    if expr.func in INCREASING:
        return _increasing(*INCREASING[expr.func], inner[0])
    rule = EXTENSION.get(expr.func)
    return LINE if rule is None else rule(inner[0])


def _outward(low: float, high: float) -> Interval:
    if math.isnan(low) or math.isnan(high):
        return LINE
    down = low if math.isinf(low) else low - _ULPS * math.ulp(low)
    up = high if math.isinf(high) else high + _ULPS * math.ulp(high)
    return (
        math.nextafter(math.inf, 0) if down == math.inf else down,
        -math.nextafter(math.inf, 0) if up == -math.inf else up,
    )


def _at(function: Callable[[float], float], x: float) -> float:
    try:
        return function(x)
    except OverflowError:
        return math.copysign(math.inf, x)


def _increasing(function: Callable[[float], float], least: float, most: float, x: Interval) -> Interval:
    low, high = _outward(*(_at(function, e) for e in x))
    if function(0.0) == 0:  # the sign is that of the argument
        low, high = (max(low, 0.0) if x[0] >= 0 else low), (min(high, 0.0) if x[1] <= 0 else high)
    return max(low, least), min(high, most)


def _sum(parts: list[Interval]) -> Interval:
    return _outward(sum(low for low, _ in parts), sum(high for _, high in parts))


def _times(left: Interval, right: Interval) -> Interval:
    corners = [0.0 if 0 in (a, b) else a * b for a in left for b in right]
    return _outward(min(corners), max(corners))


def _power(expr: sp.Pow, z: sp.Symbol, over: Interval) -> Interval:
    base, exponent = expr.args
    if base.is_number:
        if not base.is_positive:
            return LINE
        return bounds(sp.exp(exponent * sp.log(base)), z, over) if base != sp.E else _exp(bounds(exponent, z, over))
    if not exponent.is_Rational:
        return LINE
    inside = bounds(base, z, over)
    size = abs(exponent)
    if size.is_Integer and size % 2:
        low, high = (_at(lambda x: x ** int(size), x) for x in inside)
    elif size.is_Integer:
        ends = sorted(abs(x) for x in inside)
        low, high = (_at(lambda x: x ** int(size), x) for x in ends)
        low = 0.0 if inside[0] <= 0 <= inside[1] else low
    elif inside[0] >= 0:
        low, high = (_at(lambda x: x ** float(size), x) for x in inside)
    else:
        return LINE
    raised = _outward(low, high)
    if (size.is_Integer and not size % 2) or not size.is_Integer:
        raised = (max(raised[0], 0.0), raised[1])
    return raised if exponent > 0 else _inverse(raised)


def _inverse(x: Interval) -> Interval:
    if x[0] <= 0 <= x[1]:
        return LINE
    return _outward(1 / x[1], 1 / x[0])


def _exp(x: Interval) -> Interval:
    low, high = _outward(*(_at(math.exp, e) if e > 0 else math.exp(e) for e in x))
    return max(low, 0.0), high


def _log(x: Interval) -> Interval:
    return LINE if x[0] <= 0 else _outward(math.log(x[0]), math.log(x[1]))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _cosh(x: Interval) -> Interval:
    ends = sorted(abs(e) for e in x)
    low, high = _outward(*(_at(math.cosh, e) for e in ends))
    return (1.0 if x[0] <= 0 <= x[1] else max(low, 1.0)), high


def _cosine(x: Interval) -> Interval:
    """Ends, and +-1 where a multiple of pi (with room for its rounding) lies between."""
    if not x[1] - x[0] < 7 or max(map(abs, x)) > 1e6:
        return (-1.0, 1.0)
    low, high = _outward(*sorted(math.cos(e) for e in x))
    for k in range(math.ceil((x[0] - 1e-9) / math.pi), math.floor((x[1] + 1e-9) / math.pi) + 1):
        low, high = (low, 1.0) if k % 2 == 0 else (-1.0, high)
    return max(low, -1.0), min(high, 1.0)


def _sine(x: Interval) -> Interval:
    half = math.pi / 2
    return _cosine(_outward(x[0] - half, x[1] - half))


# Increasing functions with the ends of their ranges.
INCREASING: dict[type, tuple[Callable[[float], float], float, float]] = {
    sp.tanh: (math.tanh, -1, 1), sp.erf: (math.erf, -1, 1), logistic: (_logistic, 0, 1), expm1: (math.expm1, -1, math.inf),
    softplus: (_softplus, 0, math.inf), sp.sinh: (math.sinh, *LINE), sp.asinh: (math.asinh, *LINE), sp.atan: (math.atan, *LINE),
}  # fmt: skip
EXTENSION: dict[type, Callable[[Interval], Interval]] = {
    sp.exp: _exp, sp.log: _log, sp.cosh: _cosh, sp.sin: _sine, sp.cos: _cosine,
    sp.erfc: lambda x: _outward(math.erfc(x[1]), math.erfc(x[0])),
    log1p: lambda x: LINE if x[0] <= -1 else _outward(math.log1p(x[0]), math.log1p(x[1])),
}  # fmt: skip
