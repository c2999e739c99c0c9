"""Floating constants of traced code, read back as the exact numbers they were meant to be.

0.7071067811865476 becomes sqrt(2)/2 so that formulas read well; a float that is no simple number within one
unit in the last place stays exactly itself.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import sympy as sp

_ROOTS = {
    "": sp.S.One,
    "pi": sp.pi,
    "1/pi": 1 / sp.pi,
    "sqrt(pi)": sp.sqrt(sp.pi),
    "1/sqrt(pi)": 1 / sp.sqrt(sp.pi),
    "sqrt(2/pi)": sp.sqrt(2 / sp.pi),
    "sqrt(pi/2)": sp.sqrt(sp.pi / 2),
}

# Irrational constants of activations, recognised in single precision too.
_SINGLES = (
    sp.sqrt(2), sp.sqrt(2) / 2, sp.sqrt(2 / sp.pi), sp.pi, sp.pi / 2, 1 / sp.pi, 1 / sp.sqrt(sp.pi),
    sp.sqrt(sp.pi),
    sp.Rational(1, 3), sp.Rational(2, 3), sp.Rational(1, 6), sp.sqrt(3), sp.sqrt(3) / 3, sp.sqrt(sp.pi) / 2,
    2 / sp.sqrt(sp.pi), 2 / sp.pi,
)  # fmt: skip


def _small_fraction(x: float, ulps: float) -> sp.Rational | None:
    fraction = Fraction(x).limit_denominator(1000)
    close = abs(float(fraction) - x) <= ulps * math.ulp(abs(x))
    if close and 0 < abs(fraction.numerator) <= 100_000:
        return sp.Rational(fraction.numerator, fraction.denominator)
    return None


def _short_decimal(x: float) -> sp.Rational | None:
    """A float printed with at most 7 significant digits was written as that decimal."""
    text = repr(x)
    return sp.Rational(text) if len(text.replace("-", "").replace(".", "").lstrip("0")) <= 7 else None


def _snap_single(x: float) -> sp.Expr | None:
    """The number that was rounded to single precision on its way here, when it has a short name."""
    if float(np.float32(x)) != x:
        return None
    text = repr(float(str(np.float32(x))))
    if len(text.replace("-", "").replace(".", "").lstrip("0")) <= 6:
        return sp.Rational(text)
    for exact in _SINGLES:
        if float(np.float32(float(exact))) == x:
            return exact
        if float(np.float32(-float(exact))) == x:
            return -exact
    return None


@functools.cache
def snap(x: float) -> sp.Expr:
    """The simple exact number within one ulp of `x`, else the float itself.

    >>> snap(0.7071067811865476), snap(0.5), snap(0.044715), float(snap(0.123456789012))
    (sqrt(2)/2, 1/2, 8943/200000, 0.123456789012)
    """
    if not math.isfinite(x):
        return sp.oo * int(math.copysign(1, x)) if math.isinf(x) else sp.nan
    if x == 0:
        return sp.S.Zero
    if abs(x) > 1e38:  # the largest numbers, as the bounds of jnp.nan_to_num, of which no square is one
        return sp.Float(x, 17)
    decimal = _small_fraction(x, 1) or _short_decimal(x)
    if decimal is not None:
        return decimal
    single = _snap_single(x)
    if single is not None:
        return single
    for root in _ROOTS.values():
        ratio = x / float(root)
        found = _small_fraction(ratio, 2)
        if found is not None and found.q <= 64 and abs(found.p) <= 64 and _within_ulp(found * root, x):
            return found * root
    square = _small_fraction(x * x, 4)
    if square is not None and square.q <= 200 and square.p <= 200:
        guess = sp.sqrt(square) * (1 if x > 0 else -1)
        if _within_ulp(guess, x):
            return guess
    return sp.Float(x, 17)


def _within_ulp(guess: sp.Expr, x: float) -> bool:
    return abs(float(guess) - x) <= math.ulp(abs(x))


def snap_floats(expr: sp.Expr) -> sp.Expr:
    """`expr` with every Float replaced by its `snap`."""
    return expr.xreplace({f: snap(float(f)) for f in expr.atoms(sp.Float)})
