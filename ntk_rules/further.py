"""Incomplete gamma and beta functions, as JAX has them: regularised, and differentiable in their last argument alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import sympy as sp
from jax.scipy import special as jsp

__all__ = ["FURTHER", "betainc", "igamma", "igammac"]


class _Incomplete(sp.Function):
    """Base: real for real arguments."""

    def _eval_is_real(self) -> bool | None:
        return True if all(a.is_real for a in self.args) else None

    def slope(self) -> sp.Expr:
        """The derivative in the last argument."""
        raise NotImplementedError

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        if argindex != len(self.args):
            raise ValueError(f"{type(self).__name__} is differentiable in its last argument alone, as in JAX")
        return self.slope()


class igamma(_Incomplete):
    """igamma(a, x), the lower incomplete gamma function over gamma(a).

    >>> x = sp.Symbol("x", real=True)
    >>> sp.diff(igamma(2, x), x)
    x*exp(-x)
    """

    nargs = 2

    def slope(self) -> sp.Expr:
        a, x = self.args
        return x ** (a - 1) * sp.exp(-x) / sp.gamma(a)


class igammac(_Incomplete):
    """igammac(a, x) = 1 - igamma(a, x)."""

    nargs = 2

    def slope(self) -> sp.Expr:
        return -igamma(*self.args).slope()


class betainc(_Incomplete):
    """betainc(a, b, x), the incomplete beta function over beta(a, b)."""

    nargs = 3

    def slope(self) -> sp.Expr:
        a, b, x = self.args
        return x ** (a - 1) * (1 - x) ** (b - 1) * sp.gamma(a + b) / (sp.gamma(a) * sp.gamma(b))


def _polygamma(n: float, x: jax.Array) -> jax.Array:
    return jsp.digamma(x) if n == 0 else jsp.polygamma(int(n), x)


# What each computes in JAX.
FURTHER: dict[type, Callable[..., jax.Array]] = {
    igamma: jsp.gammainc, igammac: jsp.gammaincc, betainc: jsp.betainc, sp.polygamma: _polygamma,
}  # fmt: skip
