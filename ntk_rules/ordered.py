"""Order statistics as SymPy functions: the k-th smallest of several numbers, and which of them it is.

Of few numbers, or of the smallest and the largest, they are minima and maxima, which the rules cut at lines. Of more they are left as they are:
continuous, with kinks where two numbers meet, and sampled: evaluated by sorting, their slopes by ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import sympy as sp

__all__ = ["ORDERED", "TIED", "has_rank", "order_statistic"]

TIED = 2.0**-19  # of the size of two numbers: above rounding in float32, and far below the errors of sampling


class order_statistic(sp.Function):
    """order_statistic(k, x_0, x_1, ..): the k-th smallest, k = 0 the smallest.

    >>> x, y, z, w = sp.symbols("x y z w", real=True)
    >>> order_statistic(0, x, y, 1), order_statistic(1, x, 3, 1).subs(x, 2)
    (Min(1, x, y), 2)
    >>> sp.diff(order_statistic(1, x, y, z, w), y)
    has_rank(1, 1, x, y, z, w)
    """

    @classmethod
    def eval(cls, k: sp.Expr, *xs: sp.Expr) -> sp.Expr | None:
        if k == 0:
            return sp.Min(*xs)
        if k == len(xs) - 1:
            return sp.Max(*xs)
        if _few(xs):
            return _network(list(xs))[int(k)]
        return None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return has_rank(self.args[0], argindex - 2, *self.args[1:])

    def _eval_is_real(self) -> bool | None:
        return True if all(x.is_real for x in self.args[1:]) else None


class has_rank(sp.Function):
    """has_rank(k, i, x_0, x_1, ..): 1 where x_i is the k-th smallest, of equal ones the first, else 0."""

    @classmethod
    def eval(cls, k: sp.Expr, i: sp.Expr, *xs: sp.Expr) -> sp.Expr | None:
        if not _few(xs):
            return None
        one = lambda holds: sp.Piecewise((1, holds), (0, True))
        x = xs[int(i)]
        rank = sp.Add(*(one(y <= x if j < i else y < x) for j, y in enumerate(xs) if j != i))
        return one(sp.Eq(rank, k))

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.S.Zero

    def _eval_is_real(self) -> bool | None:
        return True


def _few(xs: tuple[sp.Expr, ...]) -> bool:
    """Do the lines where they meet lie in a plane?"""
    return len(xs) <= 3 or len(set().union(*(x.free_symbols for x in xs))) <= 2


def _network(xs: list[sp.Expr]) -> list[sp.Expr]:
    """Sorted, by exchanges of neighbours."""
    if len(xs) == 3:
        a, b, c = sorted(xs, key=lambda x: not x.is_number)
        return [sp.Min(*xs), sp.Max(sp.Min(a, b), sp.Min(sp.Max(a, b), c)), sp.Max(*xs)]
    for last in range(len(xs) - 1, 0, -1):
        for i in range(last):
            xs[i], xs[i + 1] = sp.Min(xs[i], xs[i + 1]), sp.Max(xs[i], xs[i + 1])
    return xs


def _sorted(k: float, *xs: jax.Array) -> jax.Array:
    return jnp.sort(jnp.stack(jnp.broadcast_arrays(*xs)), axis=0)[int(k)]


def _ranked(k: float, i: float, *xs: jax.Array) -> jax.Array:
    """Numbers that are equal but for rounding, as of two equal positions, count as equal: which of them is larger must not be another
    at every use."""
    xs = tuple(jnp.broadcast_arrays(*xs))
    x = xs[int(i)]
    rank = jnp.zeros(x.shape, int)
    for j, y in enumerate(xs):
        if j != int(i):
            equal = jnp.abs(y - x) <= TIED * (jnp.abs(x) + jnp.abs(y))
            rank = rank + jnp.where(equal, j < int(i), y < x).astype(int)
    return jnp.where(rank == int(k), 1.0, 0.0).astype(jnp.result_type(x, float))


# What each computes in JAX.
ORDERED: dict[type, Callable[..., jax.Array]] = {order_statistic: _sorted, has_rank: _ranked}
