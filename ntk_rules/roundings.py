"""What rounding does to a formula as it is written: log(cosh(z)) near z = 0 has no digits, however fine the quadrature.

Running error analysis (J. H. Wilkinson, "Rounding Errors in Algebraic Processes", 1963): every operation adds half a unit
of rounding of its result, and hands on what its arguments have, multiplied by its slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules.functions import in_order, node_value

Rounded = tuple[jax.Array, jax.Array]  # a value and how far it may be off


def rounding_of(expr: sp.Expr, symbols: Sequence[sp.Symbol]) -> Callable[..., jax.Array]:
    """The JAX function of `symbols` that estimates how far `to_jax(expr, symbols)` is off, its arguments being exact.

    >>> x = sp.Symbol("x")
    >>> off = rounding_of(sp.log(sp.cosh(x)), (x,))
    >>> bool(off(jnp.float32(1e-4)) > 1e-8)  # five times log(cosh(1e-4))
    True
    """
    symbols, order = tuple(symbols), in_order(sp.sympify(expr))

    def estimate(*arguments: jax.Array) -> jax.Array:
        dtype = jnp.result_type(*arguments, 0.0)
        unit = float(jnp.finfo(dtype).eps)
        known: dict[Any, Any] = dict(zip(symbols, arguments, strict=True))
        off: dict[Any, Any] = {s: jnp.zeros((), dtype) for s in symbols}
        for node in order:
            if node in known:
                continue
            known[node] = node_value(node, known, False)
            off[node] = _operation(node, known, off, unit)
        last = order[-1]
        return jnp.broadcast_to(jnp.asarray(off[last], dtype), jnp.shape(known[last]))

    return estimate


def _operation(node: sp.Expr, known: dict[Any, Any], off: dict[Any, Any], unit: float) -> Any:
    value = known[node]
    if isinstance(value, bool) or node.is_Integer:
        return 0.0
    size = jnp.abs(jnp.asarray(value, float)) if not hasattr(value, "dtype") else jnp.abs(value * 1.0)
    if not node.args or node.is_number:
        return unit * size
    if isinstance(node, sp.Add | sp.Mul):
        return _folded(node, known, off, unit)
    if isinstance(node, sp.Piecewise | sp.Max | sp.Min) or not isinstance(node, sp.Pow | sp.Function):
        inner = [off[a] for pair in node.args for a in (pair.args if isinstance(node, sp.Piecewise) else (pair,))]
        return sum(inner, unit * size)
    total = 2 * unit * size
    for k, argument in enumerate(node.args):
        if isinstance(off[argument], float) or (isinstance(node, sp.Pow) and k == 1 and argument.is_number):
            continue
        total = total + _handed_on(node, argument, known, off)
    return total


def _handed_on(node: sp.Expr, argument: sp.Expr, known: dict[Any, Any], off: dict[Any, Any]) -> jax.Array:
    """|d node / d argument| times what the argument is off; 0 where that is 0, whatever the slope."""
    there = jnp.asarray(known[argument])
    slope = jax.jvp(
        lambda x: jnp.asarray(node_value(node, {**known, argument: x}, False)), (there,), (jnp.ones_like(there),)
    )[1]
    return jnp.where(off[argument] == 0, 0, jnp.abs(slope) * off[argument])


def _folded(node: sp.Expr, known: dict[Any, Any], off: dict[Any, Any], unit: float) -> Any:
    """Sums and products as they are computed, one argument after the other."""
    first, *others = node.args
    value, error = known[first], off[first]
    for argument in others:
        x, e = known[argument], off[argument]
        if isinstance(node, sp.Add):
            value, error = value + x, error + e
        else:
            value, error = value * x, jnp.abs(value) * e + jnp.abs(x) * error
        error = error + unit * jnp.abs(value)
    return error
