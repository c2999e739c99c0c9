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
from ntk_rules.evaluate import HEAD_MEANING, Entry, evaluation, limit, symbol_values
from ntk_rules.functions import in_order, node_value
from ntk_rules.method import MOVED

_SAFETY = 2.0  # derivatives are of first order, and functions of XLA are some units off
Known = dict[Any, Any]


def rounding_bound(
    formula: sp.Expr, parameters: Sequence[sp.Symbol]
) -> Callable[[dict[Entry, jax.Array], Sequence[jax.Array]], jax.Array]:  # fmt: skip
    """A function of ({(i, j): covariance}, parameters): a bound of the rounding in `compile_formula(formula, parameters)` there, the
    arguments being exact. Infinite where it overflows.
    """
    symbols = sorted(formula.free_symbols - set(parameters), key=str)
    correlations = sorted({s.name.replace("w_", "rho_") for s in symbols if s.name.startswith(("rho_", "w_"))})
    evaluate = evaluation(formula)
    order = [node for node in in_order(formula) if node.args and node.free_symbols]

    def bound(covariances: dict[Entry, jax.Array], values: Sequence[jax.Array]) -> jax.Array:
        read = {s: x for s, x in symbol_values(symbols, covariances).items() if s.is_Symbol}
        given: Known = read | dict(zip(parameters, values, strict=True))
        if not formula.free_symbols:
            return 4 * jnp.finfo(jnp.result_type(float)).eps * jnp.abs(jnp.asarray(float(formula)))
        given = dict(zip(given, special.as_floats(*given.values()), strict=True))
        shape = jnp.broadcast_shapes(*(x.shape for x in given.values()))
        unit = float(jnp.finfo(next(iter(given.values())).dtype).eps)
        known = evaluate(_moved(given, covariances, correlations, unit, len(shape)))
        results = jnp.broadcast_to(known[formula], (1 + 2 * len(correlations), *shape))
        by_correlation = [jnp.max(jnp.abs(results[k : k + 2] - results[0]), axis=0) for k in range(1, len(results), 2)]
        plain = {node: x[0] if isinstance(x, jax.Array) and x.ndim > len(shape) else x for node, x in known.items()}
        rounding = unit * (jnp.abs(results[0]) + _backwards(formula, order, plain))
        total = _SAFETY * (rounding + sum(by_correlation)) + float(jnp.finfo(results.dtype).tiny)
        return jnp.where(jnp.isfinite(total), total, jnp.inf)

    return bound


def _moved(given: Known, covariances: dict[Entry, jax.Array], names: list[str], unit: float, rank: int) -> Known:
    """The symbols with one more axis in front: as they are, then each correlation moved to either side, its sine with it."""
    out = {s: x.reshape(1, *(1,) * (rank - x.ndim), *x.shape) for s, x in given.items()}
    for k, name in enumerate(names):
        pair = sp.Symbol(name, real=True), sp.Symbol(name.replace("rho_", "w_"), positive=True)
        rho, sine = map(symbol_values(pair, covariances).__getitem__, pair)
        moves = [0.0] * (1 + 2 * len(names))
        moves[2 * k + 1], moves[2 * k + 2] = -MOVED * unit, MOVED * unit
        steps = jnp.asarray(moves, rho.dtype).reshape(-1, *(1,) * rank)
        moved = jnp.clip(rho * (1 + steps), -1, 1)
        both = {"rho": moved, "w": jnp.where(steps == 0, sine, jnp.sqrt((1 - moved) * (1 + moved)))}
        for s in given:
            kind, _, index = s.name.partition("_")
            if kind in both and name == f"rho_{index}":
                out[s] = both[kind]
    return out


def _backwards(formula: sp.Expr, order: list[sp.Expr], known: Known) -> jax.Array:
    """The sum over all operations of |d result / d operation| times its rounding, in units."""
    slopes: Known = {formula: jnp.ones_like(jnp.asarray(known[formula]))}
    total = jnp.zeros(())
    for node in reversed(order):
        slope = slopes.pop(node, None)
        if slope is None:
            continue
        if isinstance(node, sp.Piecewise):
            for branch, _ in node.args:
                if branch.free_symbols:
                    taken = jnp.equal(known[node], known[branch])
                    slopes[branch] = slopes.get(branch, 0.0) + jnp.where(taken, slope, 0)
            continue
        size, weight = _rounding(node, known)
        total = total + jnp.abs(slope) * size * weight
        for argument, part in zip(node.args, _slopes(node, known), strict=True):
            if part is not None and argument.free_symbols:
                slopes[argument] = slopes.get(argument, 0.0) + slope * part
    # Of a standard deviation, a root; of a sine, a root of a product. A correlation is moved, and a covariance is exact.
    roots = [s for s in slopes if s.is_Symbol and s.name.startswith(("s_", "w_"))]
    return total + sum(jnp.abs(slopes[s] * known[s]) for s in roots)


def _rounding(node: sp.Expr, known: Known) -> tuple[Any, float]:
    """The size that the rounding of an operation is relative to, and how many units it may be."""
    if isinstance(node, sp.Mul):
        numbers = [a for a in node.args if a.is_number]
        return jnp.abs(known[node]), len(node.args) - 1 - (numbers == [-1])
    if isinstance(node, sp.Add | heads.Residue):
        addends = node.args if isinstance(node, sp.Add) else node.args[1:]
        return sum(jnp.abs(known[a]) for a in addends), max(1, len(addends) - 1)
    if isinstance(node, heads.BivariateCdf):
        return _bivariate(node, known)[2], 48.0
    if isinstance(node, heads.WaveCdf):
        k, _, mean, shift, std, rest = (known[a] for a in node.args)
        turn = jnp.abs(limit(mean, std) * limit(shift, std))
        return jnp.where(jnp.asarray(mean) > 0, jnp.exp(k), 0) + jnp.exp(rest) * (1 + turn), 8.0
    return jnp.abs(known[node]), 8.0 if isinstance(node, tuple(HEAD_MEANING)) else 4.0


def _slopes(node: sp.Expr, known: Known) -> list[Any]:
    """The derivatives of an operation by its arguments; None where it does not depend on one or rounding has been counted."""
    if isinstance(node, sp.Add):
        return [1.0] * len(node.args)
    if isinstance(node, heads.Residue):
        return [None, *[1.0] * (len(node.args) - 1)]
    if isinstance(node, sp.Mul):
        return [_others(node, k, known) for k in range(len(node.args))]
    if isinstance(node, sp.Pow) and node.exp.is_number:
        base = known[node.base]
        return [float(node.exp) * known[node] * special.reciprocal(base), None]
    if isinstance(node, heads.BivariateCdf):
        by_h, by_j, size = _bivariate(node, known)
        m1, s1, m2, s2, _, _, _, _ = (known[a] for a in node.args)
        firsts = [by_h * special.reciprocal(s1), -by_h * limit(m1, s1) * special.reciprocal(s1)]
        seconds = [by_j * special.reciprocal(s2), -by_j * limit(m2, s2) * special.reciprocal(s2)]
        # Correlation and sine of the integral are each known to some units, which its size allows for.
        return [*firsts, *seconds, None, None, jnp.abs(known[node]), size]
    if isinstance(node, heads.ScaledCdf):
        return _of_scaled(node, known)
    where = [k for k, a in enumerate(node.args) if a.free_symbols]
    arguments = special.as_floats(*(known[node.args[k]] for k in where))

    def alone(*moved: jax.Array) -> jax.Array:
        return node_value(node, {**known, **{node.args[k]: x for k, x in zip(where, moved, strict=True)}}, True)

    shape = jnp.broadcast_shapes(*(a.shape for a in arguments))
    arguments = tuple(jnp.broadcast_to(a, shape) for a in arguments)
    value, back = jax.vjp(alone, *arguments)
    found = dict(zip(where, back(jnp.ones_like(value)), strict=True))
    return [found.get(k) for k in range(len(node.args))]


def _of_scaled(node: sp.Expr, known: Known) -> list[Any]:
    """Those of exp(k) P(mean + std x > 0), which in the tail is exp(rest) times a function of mean/std, and elsewhere knows no `rest`."""
    _, mean, std, rest = special.as_floats(*(known[a] for a in node.args))
    x, value, inverse = limit(mean, std), known[node], special.reciprocal(std)
    tail = x < 0
    by_x = jnp.exp(rest) / math.sqrt(2 * math.pi) + jnp.where(tail, x * value, 0)
    return [jnp.where(tail, 0, value), by_x * inverse, -by_x * x * inverse, jnp.where(tail, value, 0)]


def _others(node: sp.Mul, k: int, known: Known) -> Any:
    """The product of the other factors: the product by the factor, and multiplied up where that is zero."""
    factor = known[node.args[k]]
    if not node.args[k].free_symbols:
        return None
    others = math.prod((known[a] for j, a in enumerate(node.args) if j != k), start=1.0)
    return jnp.where(factor == 0, others, known[node] * special.reciprocal(factor))


def _bivariate(node: sp.Expr, known: Known) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives of exp(k) P(x < h, y < j) by h and j, and the size of its rounding."""
    m1, s1, m2, s2, r, w, k, rest = special.as_floats(*(known[a] for a in node.args))
    h, j = limit(m1, s1), limit(m2, s2)
    zero = w == 0
    inverse = special.reciprocal(w)
    past = [special.beyond(a, b, r, w) for a, b in ((j, h), (h, j))]
    y_h, y_j = (jnp.where(zero, jnp.sign(x) * 40, x * inverse) for x in past)
    one = jnp.ones_like(h)
    if node.args[6] != 0:
        at_h, at_j = (special.scaled_cdf(k - x * x / 2, y, one, rest) for x, y in ((h, y_h), (j, y_j)))
        halves = [special.scaled_cdf(k, x, one, k - x * x / 2) for x in (h, j)]
        size = jnp.minimum(*halves) + jnp.exp(jnp.minimum(rest, k))
    else:
        at_h, at_j = (jnp.exp(-x * x / 2) * special.normal_cdf(y, one) for x, y in ((h, y_h), (j, y_j)))
        size = jnp.minimum(*(special.normal_cdf(x, one) for x in (h, j)))
    return at_h / math.sqrt(2 * math.pi), at_j / math.sqrt(2 * math.pi), size
