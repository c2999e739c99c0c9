"""How sharp functions are at the variances that they meet: is float32 enough for them?

A smooth function F(a z) of a Gaussian z whose variance q is large goes from one level to another within a small part of the spread of z. What
it makes of two inputs then depends on how far apart they are, on a scale of 1/(a^2 q) in their correlation; and a distance is a difference of
covariances, of which float32 has seven digits. (Functions with kinks are as sharp at every variance. Of those it is known which pairs are
near, which are computed again: `tensorprog.runtime.refine`.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ntk_rules.pieces import has_kinks
from tensorprog.kernel.graph import Expect, Quantity
from tensorprog.lower.run import Slots

__all__ = ["Sharpness", "steepness"]


def steepness(function: sp.Expr) -> float:
    """a of F(a z): by how much arguments are multiplied within the functions of an expression, one that is a power z^k by a^k. 0 of
    polynomials, and of functions with kinks.

    >>> z = sp.Symbol("z", real=True)
    >>> steepness(z * sp.tanh(3 * z)), steepness(sp.exp(-4 * z**2)), steepness(z**2)
    (3.0, 2.0, 0.0)
    """
    if has_kinks(function):
        return 0.0
    roots = [p.base for p in function.atoms(sp.Pow) if not (p.exp.is_integer and p.exp.is_positive)]
    arguments = [argument for f in function.atoms(sp.Function) for argument in f.args] + roots
    return max((_scale(argument) for argument in arguments), default=0.0)


def _scale(argument: sp.Expr) -> float:
    zs = sorted(argument.free_symbols, key=str)
    if not zs:
        return 0.0
    if not argument.is_polynomial(*zs):
        return 1.0  # of the functions in it
    terms = sp.Poly(argument, *zs).terms()
    return max((float(abs(c)) ** (1 / sum(powers)) for powers, c in terms if any(powers)), default=0.0)


class Sharpness:
    """The largest a^2 q in the states of many inputs. It is false where no function is smooth, and not a polynomial."""

    def __init__(self, nodes: Iterable[Quantity], slots: Slots):
        self._factors: dict[int, float] = {}  # by the slot of a variance, or of those of several layers
        for q in nodes:
            if isinstance(q, Expect) and q.cross and (steep := steepness(q.function)):
                for (i, j), operand in zip(q.expectation.needs, q.operands, strict=False):
                    if i == j and operand.side is not None:
                        slot = slots.slot(operand.quantity)
                        self._factors[slot] = max(self._factors.get(slot, 0.0), steep**2)

    def __bool__(self) -> bool:
        return bool(self._factors)

    def variances(self, states: Any) -> list[jax.Array]:
        """What `largest` looks at, of the states: numbers of layers as they are there in any case, of fields the largest."""
        found = (states[slot] for slot in self._factors)
        return [a if a.ndim <= 2 else a.max(tuple(range(1, a.ndim))) for a in found]

    def of_each(self, states: Any) -> jax.Array:
        """The largest a^2 q of each input."""
        pairs = zip(self.variances(states), self._factors.values(), strict=True)
        return functools.reduce(jnp.maximum, [q.max(tuple(range(1, q.ndim))) * factor for q, factor in pairs])

    def largest(self, variances: Sequence[Any]) -> float:
        """By NumPy, for which nothing is compiled."""
        pairs = zip(variances, self._factors.values(), strict=True)
        return max((float(np.max(np.asarray(q), initial=0)) * factor for q, factor in pairs), default=0.0)
