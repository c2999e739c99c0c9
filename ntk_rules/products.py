"""Products in closed forms where a factor may be zero, overflow or underflow though the product does not.

Second derivatives are divided by powers of standard deviations, and multiplied by vanishing densities or by as many powers again:
C^6/(s^2 + 1/2)^11 at variance 1e8 is 1e-40 times 1e48 in single precision.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import special

# The highest powers of a standard deviation of 1e4, and of 1e-6, that single precision holds.
_FAR, _NEAR = 9, 6


def guarded_product(node: sp.Mul, known: dict[Any, Any]) -> Any:
    """The product, its arguments and their bases being `known`: densities first, and divisions last. Where several divisions may overflow,
    a factor that is zero, a density far out or 1/w at correlation 1, makes all of it zero.
    """
    if _out_of_range(node):
        return _scaled(node, known)
    order = sorted(node.args, key=_urgency)
    total = functools.reduce(jnp.multiply, (known[a] for a in order))
    if _steepness(node) < 4:
        return total
    zero = functools.reduce(jnp.logical_or, (jnp.equal(known[a], 0) for a in order))
    return jnp.where(zero, 0, total)


def _urgency(factor: sp.Expr) -> int:
    if isinstance(factor, sp.Function):
        return 0
    return 1 if factor.is_number else 3 if factor.is_Pow and factor.exp.is_negative else 2


@functools.lru_cache(maxsize=4096)
def _steepness(expr: sp.Expr) -> float:
    """By how many factors, such as standard deviations near zero, it is divided."""
    if expr.is_Mul:
        return sum(map(_steepness, expr.args))
    if expr.is_Add:
        return max(map(_steepness, expr.args))
    if expr.is_Pow and expr.exp.is_Rational and expr.exp < 0:
        return -float(expr.exp) * max(1.0, _power(expr.base, False))
    return 0.0


def _out_of_range(node: sp.Mul) -> bool:
    """Whether the factors alone may leave the range of single precision, between variances 1e-12 and 1e8."""
    for most, far in ((_FAR, True), (_NEAR, False)):
        powers = [_power(a, far) for a in node.args]
        if max(sum(p for p in powers if p > 0), -sum(p for p in powers if p < 0)) > most:
            return True
    return False


@functools.lru_cache(maxsize=4096)
def _power(expr: sp.Expr, far: bool) -> float:
    """As which power of a standard deviation it grows, far out or near zero."""
    if expr.is_Symbol:
        return {"s": 1.0, "C": 2.0}.get(expr.name.partition("_")[0], 0.0)
    if expr.is_Mul:
        return sum(_power(a, far) for a in expr.args)
    if expr.is_Add:
        return (max if far else min)(_power(a, far) for a in expr.args)
    if expr.is_Pow and expr.exp.is_Rational:
        return float(expr.exp) * _power(expr.base, far)
    return 0.0


def _scaled(node: sp.Mul, known: dict[Any, Any]) -> jax.Array:
    """Mantissas and exponents multiplied apart."""
    halves = [(a.base, int(2 * a.exp)) if _is_root(a) else (a, 2) for a in node.args]
    values = special.as_floats(*(known[base] for base, _ in halves))
    mantissas, exponents = zip(*(_raised(x, n) for x, (_, n) in zip(values, halves, strict=True)), strict=True)
    zero = functools.reduce(jnp.logical_or, (x == 0 for x in values))
    return jnp.where(zero, 0, jnp.ldexp(functools.reduce(jnp.multiply, mantissas), sum(exponents)))


def _is_root(factor: sp.Expr) -> bool:
    """Whether it is a power of whole or half order."""
    return bool(factor.is_Pow and factor.exp.is_Rational and factor.exp.q <= 2)


def _raised(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """x^(n/2) as a mantissa and an exponent of two; 0 where x is 0, whatever n."""
    mantissa, exponent = jnp.frexp(x)
    if n % 2 == 0:
        power, order = mantissa, n // 2
    else:
        odd = exponent % 2
        power, order, exponent = jnp.sqrt(jnp.ldexp(mantissa, odd)), n, (exponent - odd) // 2
    if order < 0:
        return special.reciprocal(jax.lax.integer_pow(power, -order)), exponent * order
    return jax.lax.integer_pow(power, order), exponent * order
