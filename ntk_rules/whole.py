"""Functions that round to whole numbers: `floor`, `ceiling`, `trunc`, and two that round to the nearest.

Each jumps at infinitely many places and is constant between them, so that its derivative, as code has it, is zero. Values at the places of
the jumps are those of JAX. What is integrated exactly, `cells.py` and `stairs.py` say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules.heads import powered

__all__ = ["ROUNDING", "Rounding", "ceiling", "floor", "round_away", "round_even", "trunc"]


class Rounding(sp.Function):
    """Base of the functions that are constant between the places where their argument is a whole number plus `offset`."""

    nargs = 1
    is_integer = True
    offset = sp.S.Zero
    odd = False

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        if isinstance(x, Rounding) or x.is_Integer:
            return x
        return sp.Integer(cls.whole(x)) if x.is_Number and x.is_finite else None

    @staticmethod
    def whole(x: Any) -> int:
        """The value at a number."""
        raise NotImplementedError

    def written_out(self) -> sp.Expr:
        """The same in SymPy's functions, but for the values at the jumps themselves."""
        raise NotImplementedError

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.S.Zero

    def _eval_evalf(self, precision: int) -> sp.Expr | None:
        inner = self.args[0].evalf(precision)
        return sp.Integer(self.whole(inner)) if inner.is_Number else None


class floor(Rounding):
    """The largest whole number that is not larger."""

    @staticmethod
    def whole(x: Any) -> int:
        return math.floor(x)

    def written_out(self) -> sp.Expr:
        return sp.floor(self.args[0])


class ceiling(Rounding):
    """The smallest whole number that is not smaller."""

    @staticmethod
    def whole(x: Any) -> int:
        return math.ceil(x)

    def written_out(self) -> sp.Expr:
        return sp.ceiling(self.args[0])


class trunc(Rounding):
    """The whole number next to it towards zero."""

    odd = True

    @staticmethod
    def whole(x: Any) -> int:
        return math.trunc(x)

    def written_out(self) -> sp.Expr:
        return sp.sign(self.args[0]) * sp.floor(sp.Abs(self.args[0]))

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return powered(rf"\operatorname{{trunc}}\left({printer.doprint(self.args[0])}\right)", exp)


class _Nearest(Rounding):
    offset = sp.Rational(1, 2)
    odd = True

    def written_out(self) -> sp.Expr:
        return sp.floor(self.args[0] + sp.Rational(1, 2))

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return powered(rf"\operatorname{{round}}\left({printer.doprint(self.args[0])}\right)", exp)


class round_even(_Nearest):
    """The nearest whole number; of two as near, the even one."""

    @staticmethod
    def whole(x: Any) -> int:
        return round(sp.Rational(x)) if isinstance(x, sp.Number) else round(x)


class round_away(_Nearest):
    """The nearest whole number; of two as near, the one that is farther from zero."""

    @staticmethod
    def whole(x: Any) -> int:
        return int(math.copysign(math.floor(abs(x) + sp.Rational(1, 2)), x))


# What each computes in JAX.
ROUNDING: dict[type, Callable[..., jax.Array]] = {
    floor: jnp.floor, ceiling: jnp.ceil, trunc: jnp.trunc, round_even: jnp.round,
    round_away: lambda x: jax.lax.round(jnp.asarray(x), jax.lax.RoundingMethod.AWAY_FROM_ZERO),
}  # fmt: skip
