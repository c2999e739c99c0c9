"""E[f(u) g(v)] at variances beyond the reach of a series: the plane, with nodes on the scale of the functions and on that of the law.

At large variances f and g are steps to the law, and the law is flat to them. With u = s_u x and v = s_v (rho x + w y) the step of g lies at
y = -rho x/w, and that of f at x = 0. Both integrals are cut there, with graded panels on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntk_rules import special
from ntk_rules.chunks import broadcasting, elementwise, in_slices
from ntk_rules.panels import SHARP, Piecewise, density, graded

NODES64, NODES32 = 104, 44  # on either side of a cut
REACH64, REACH32 = 9.0, 6.0
_CHUNK = 16
Rule = tuple[Any, Any]
_FINEST = 1e-9  # no law is so narrow that more than rounding lies within


def centred(*factors: Piecewise) -> bool:
    """Whether no factor has a kink elsewhere than at zero: that is where the plane is cut."""
    return all(not h.parameters and all(p.low == 0 for p in h.pieces[1:]) for h in factors)


def _graded(cut: jax.Array, scale: jax.Array, rule: Rule, reach: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(places, their distances from `cut` with signs, weights) on [-reach, reach], the node axis last, those left of it first."""
    left, right = (graded(reach - side * cut, scale, rule) for side in (-1, 1))
    distance = jnp.concatenate([-left[0], right[0]], -1)
    return cut[..., None] + distance, distance, jnp.concatenate([left[1], right[1]], -1)


def _sides(f: Piecewise, z: jax.Array, n: int) -> jax.Array:
    """f at the nodes of `_graded` about its place zero."""
    left, right = jnp.minimum(z[..., :n], 0), jnp.maximum(z[..., n:], 0)
    values = (jnp.broadcast_to(h(x), x.shape) for h, x in ((f.functions[0], left), (f.functions[-1], right)))
    return jnp.concatenate([*values], -1)


def mean_far(f: Piecewise, g: Piecewise) -> Callable[..., jax.Array]:
    """E[f(s_u x) g(s_v (rho x + w y))] as a function of one-dimensional arrays (s_u, s_v, rho, w), and of nodes and weights between 0 and
    1 where these are not to be the usual ones.
    """
    kinked = len(g.pieces) > 1

    def value(s_u: jax.Array, s_v: jax.Array, rho: jax.Array, w: jax.Array, rule: Rule | None = None) -> jax.Array:
        most, reach = (NODES64, REACH64) if special.is_double(s_u) else (NODES32, REACH32)
        rule = special.gauss_legendre(most) if rule is None else rule
        n = len(rule[0])
        finest = SHARP / jnp.maximum(jnp.maximum(s_u, s_v), 1)
        outer = jnp.clip(jnp.minimum(finest, w), _FINEST, 1) if kinked else finest
        x, _, weights = _graded(jnp.zeros_like(s_u), outer, rule, reach)
        spread = (s_v * w)[:, None]
        flat = w[:, None] <= jnp.abs(rho[:, None] * x) / reach  # the step of g is out of reach
        cut = jnp.where(flat, -reach * jnp.sign(rho[:, None] * x), -rho[:, None] * x / jnp.where(flat, 1, w[:, None]))
        scale = jnp.broadcast_to(SHARP / jnp.maximum(spread, 1), x.shape)
        y, distance, inner = _graded(cut, scale, rule, reach)
        mean = (s_v * rho)[:, None] * x
        # From its own cut on v is what it is away from there: the difference of two large numbers would have no digits.
        v = spread[..., None] * distance + jnp.where(flat, mean + spread * cut, 0)[..., None]
        values = jnp.where(flat[..., None], _either(g, v), _sides(g, v, n))
        conditional = jnp.sum(density(y) * inner * values, axis=-1)
        return jnp.sum(weights * density(x) * _sides(f, s_u[:, None] * x, n) * conditional, axis=-1)

    return value


def _either(f: Piecewise, z: jax.Array) -> jax.Array:
    if len(f.pieces) == 1:
        return f.functions[0](z)
    return jnp.where(z > 0, f.functions[-1](jnp.maximum(z, 0)), f.functions[0](jnp.minimum(z, 0)))


def beyond(f: Piecewise, g: Piecewise, single: float, double: float) -> Callable[..., jax.Array]:
    """A function of (s_u, s_v, rho, w, value): `value`, and the mean by `mean_far` where a variance is beyond `single` or `double`, by
    precision. Nothing is integrated where none is.
    """
    sliced = elementwise(mean_far(f, g), _CHUNK)

    def chosen(s_u: jax.Array, s_v: jax.Array, rho: jax.Array, w: jax.Array, value: jax.Array) -> jax.Array:
        near = jnp.maximum(s_u, s_v) ** 2 <= (double if special.is_double(s_u) else single)
        shape = jnp.broadcast_shapes(near.shape, rho.shape, value.shape)
        usual = jnp.broadcast_to(value, shape)

        def integrated() -> jax.Array:
            return jnp.where(near, usual, jnp.broadcast_to(sliced(s_u, s_v, rho, w), shape).astype(usual.dtype))

        return jax.lax.cond(jnp.all(near), lambda: usual, integrated)

    return broadcasting(chosen)


def thinned(f: Piecewise, g: Piecewise, thins: tuple[int, ...]) -> Callable[..., list[jax.Array]]:
    """A function of (wanted, s_u, s_v, rho, w): the means with all nodes and with fewer, where they are wanted, and 0 elsewhere."""
    value = mean_far(f, g)

    def values(wanted: jax.Array, *law: jax.Array) -> list[jax.Array]:
        shape = jnp.broadcast_shapes(wanted.shape, *(x.shape for x in law))
        flat = [jnp.broadcast_to(x, shape).reshape(-1) for x in (wanted, *law)]
        most = NODES64 if special.is_double(law[0]) else NODES32

        def mean(thin: int) -> jax.Array:
            rule = special.gauss_legendre(most // thin)

            def some(wanted: jax.Array, *rows: jax.Array) -> jax.Array:
                zeros = lambda: jnp.zeros_like(rows[0])
                return jax.lax.cond(jnp.any(wanted), lambda: jnp.where(wanted, value(*rows, rule), 0), zeros)

            # so many at a time as have together the nodes of one that is not thinned
            return in_slices(some, thin * thin)(*flat).reshape(shape)

        return [mean(thin) for thin in thins]

    return values
