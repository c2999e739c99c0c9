"""How far the value of a closed form may be off by rounding.

Every operation of the formula adds its own rounding, and what that does to the result is the derivative of the result by the operation's
value: one pass backwards through the formula has them all (S. Linnainmaa, "Taylor expansion of the accumulated rounding error", BIT 16,
1976). Operations count with a few units each, those of `heads.py` with what their tests allow, relative to the size of what they are sums
of. The correlation is not differentiated but moved by its rounding, its sine with it: near 1 and -1, where it snaps, the derivative
is infinite and the difference is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import heads, special
from ntk_rules.evaluate import HEAD_MEANING, Entry, limit, symbol_value
from ntk_rules.functions import in_order, node_value

_SAFETY = 2.0  # first-order derivatives, and functions of XLA some units off
_MOVED = 4.0  # units of rounding of a correlation: two roots, two products, and what counts as 1
Known = dict[Any, Any]


def rounding_bound(
    formula: sp.Expr, parameters: Sequence[sp.Symbol]
) -> Callable[[dict[Entry, jax.Array], Sequence[jax.Array]], jax.Array]:  # fmt: skip
    """A function of ({(i, j): covariance}, parameters): a bound of the rounding in `compile_formula(formula, parameters)` there, the
    arguments being exact. Infinite where it overflows.
    """
    symbols = sorted(formula.free_symbols - set(parameters), key=str)
    correlations = [s for s in symbols if s.name.startswith("rho_")]
    correlations += [_rho(s) for s in symbols if s.name.startswith("w_") and _rho(s) not in correlations]
    order = [node for node in in_order(formula) if node.args and not (node.is_number and not node.has(sp.Function))]

    def bound(covariances: dict[Entry, jax.Array], values: Sequence[jax.Array]) -> jax.Array:
        given: Known = {s: symbol_value(s, covariances) for s in {*symbols, *correlations}}
        given |= dict(zip(parameters, values, strict=True))
        if not given:
            return 4 * jnp.finfo(jnp.result_type(float)).eps * jnp.abs(jnp.asarray(float(formula)))
        arrays = special.as_floats(*given.values())
        shape, unit = jnp.broadcast_shapes(*(a.shape for a in arrays)), float(jnp.finfo(arrays[0].dtype).eps)
        perturbed = [s for s in symbols if s.name.startswith(("s_", "w_"))]

        def result(moves: list[jax.Array]) -> jax.Array:
            known = dict(given)
            for s, move in zip(perturbed, moves, strict=False):
                known[s] = known[s] * (1 + move)
            for node, move in zip(order, moves[len(perturbed) :], strict=True):
                known[node] = _operation(node, known, move)
            return jnp.broadcast_to(known[formula], shape)

        still = [jnp.zeros(shape, arrays[0].dtype) for _ in (*perturbed, *order)]
        value, back = jax.vjp(result, still)
        total = unit * sum((jnp.abs(slope) for slope in back(jnp.ones_like(value))[0]), jnp.abs(value))
        for rho in correlations:
            total = total + _by_correlation(formula, given, rho, value, unit)
        total = _SAFETY * total + float(jnp.finfo(value.dtype).tiny)
        return jnp.where(jnp.isfinite(total), total, jnp.inf)

    return bound


def _rho(sine: sp.Symbol) -> sp.Symbol:
    return sp.Symbol(sine.name.replace("w_", "rho_"), real=True)


def _by_correlation(formula: sp.Expr, given: Known, rho: sp.Symbol, value: jax.Array, unit: float) -> jax.Array:
    """The largest change of the formula when a correlation moves by its rounding to either side."""
    sine = sp.Symbol(rho.name.replace("rho_", "w_"), positive=True)
    changes = []
    for side in (-1, 1):
        moved = jnp.clip(given[rho] * (1 + side * _MOVED * unit), -1, 1)
        known = {**given, rho: moved, sine: jnp.sqrt((1 - moved) * (1 + moved))}
        for node in in_order(formula):
            if node not in known:
                known[node] = _operation(node, known, None) if node.args else node_value(node, known, True)
        changes.append(jnp.abs(known[formula] - value))
    return jnp.maximum(*changes)


def _operation(node: sp.Expr, known: Known, move: jax.Array | None) -> Any:
    """The value of a node, `move` units of rounding off."""
    for argument in node.args:
        if argument not in known:
            known[argument] = node_value(argument, known, True)
    if isinstance(node, sp.Mul):
        value, size, weight = _product(node, known), None, _factors(node)
    elif isinstance(node, sp.Add | heads.Residue):
        addends = node.args if isinstance(node, sp.Add) else node.args[1:]
        value = node_value(node, known, True)
        size, weight = sum(jnp.abs(known[a]) for a in addends), max(1, len(addends) - 1)
    elif type(node) in _SIZES:
        meaning = _RAW.get(type(node), HEAD_MEANING[type(node)])
        value, (size, weight) = meaning(*(known[a] for a in node.args)), _SIZES[type(node)](node, known)
    else:
        value, size, weight = node_value(node, known, True), None, 4
    if move is None or isinstance(value, bool | int | float):
        return value
    return value + move * weight * jax.lax.stop_gradient(jnp.abs(value) if size is None else size)


def _factors(node: sp.Mul) -> int:
    """How often a product rounds; a change of sign never does."""
    return sum(factor not in (1, -1) for factor in node.args) - 1 or (0 if -1 in node.args else 1)


def _product(node: sp.Mul, known: Known) -> jax.Array:
    """The product as it is computed, whose derivatives are taken by the logarithm, or at a factor of zero by the others."""
    value = jax.lax.stop_gradient(jnp.asarray(node_value(node, known, True)))
    factors = [known[a] for a in node.args if not isinstance(known[a], bool | int | float)]
    total = value
    for k, factor in enumerate(factors):
        zero = jax.lax.stop_gradient(factor) == 0
        still = jax.lax.stop_gradient(jnp.where(zero, 1, factor))
        numbers = math.prod(float(known[a]) for a in node.args if isinstance(known[a], int | float))
        others = math.prod((jax.lax.stop_gradient(f) for j, f in enumerate(factors) if j != k), start=numbers)
        total = total + jnp.where(zero, others * factor, value * (jnp.where(zero, still, factor) / still - 1))
    return total


def _of_bivariate(node: sp.Expr, known: Known) -> tuple[Any, float]:
    m1, s1, m2, s2, _, _, k, rest = (known[a] for a in node.args)
    h, j = limit(m1, s1), limit(m2, s2)
    if isinstance(k, int | float) and k == 0:
        return jnp.minimum(*(special.normal_cdf(x, jnp.ones_like(x)) for x in (h, j))) + 1e-2, 48.0
    halves = (special.scaled_cdf(k, x, jnp.ones_like(x), k - x * x / 2) for x in (h, j))
    return jnp.minimum(*halves) + jnp.exp(jnp.minimum(rest, k)), 48.0


def _of_wave(node: sp.Expr, known: Known) -> tuple[Any, float]:
    k, _, mean, shift, std, rest = (known[a] for a in node.args)
    turn = jnp.abs(limit(mean, std) * limit(shift, std))
    return jnp.where(jnp.asarray(mean) > 0, jnp.exp(k), 0) + jnp.exp(rest) * (1 + turn), 8.0


def _of_exponentials(node: sp.Expr, known: Known) -> tuple[Any, float]:
    return jnp.abs(HEAD_MEANING[type(node)](*(known[a] for a in node.args))), 8.0


# The size that the rounding of a special function is relative to, and how many units it may be.
_SIZES: dict[type, Callable[[sp.Expr, Known], tuple[Any, float]]] = {
    heads.BivariateCdf: _of_bivariate,
    heads.WaveCdf: _of_wave,
    heads.ExpDifference: _of_exponentials,
    heads.ExpDifferences: _of_exponentials,
    heads.NormalCdf: _of_exponentials,
    heads.CentredCdf: _of_exponentials,
    heads.ScaledCdf: _of_exponentials,
    heads.Arcsine: _of_exponentials,
    heads.PairExponent: _of_exponentials,
}


def _raw_bivariate(m1: Any, s1: Any, m2: Any, s2: Any, r: Any, w: Any, k: Any, rest: Any) -> jax.Array:
    """The integral with the derivatives of its code, in which sine and correlation are apart."""
    h, j = limit(m1, s1), limit(m2, s2)
    if isinstance(k, int | float) and k == 0:
        return special.bivariate_value(h, j, r, w)
    return special.scaled_bivariate_cdf(h, j, r, w, k, rest)


_RAW: dict[type, Callable[..., jax.Array]] = {heads.BivariateCdf: _raw_bivariate}
