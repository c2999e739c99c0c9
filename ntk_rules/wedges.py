"""E[f(u) g(v)] for factors whose one kink is at zero, at moderate variances: polar coordinates, and few nodes.

The lines u = 0 and v = 0 cut the plane into four wedges. In polar coordinates of the whitened plane f and g are analytic functions
of the radius and of the angle within a wedge,

    u = s_u r sin(t), v = s_v r sin(psi - t), 0 < t < psi = pi - phi, where both are positive, cos(phi) = rho,
    u = s_u r sin(t), v = -s_v r sin(phi - t), 0 < t < phi, where u alone is,

so that Gauss-Legendre converges geometrically in both, at any correlation, with no transition to resolve near 1 or -1. What bounds the
variances from above is that f changes on its own scale, whatever the variance: the rule of `panels.py` has nodes for that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules import special
from ntk_rules.interpreted import by_numpy
from ntk_rules.panels import Piecewise, mean_one, mean_two

Value = Callable[..., jax.Array]
_REACH = 10.0  # of the radius
_VARIANCES = (16.0, 4.0, 2.0, 1.0, 0.25, 0.01)  # at which it is tried
_CORRELATIONS = np.array([0.5, -0.9, 1.0, -1.0])
AGREED = 5e-7, 1e-14  # with the panels in single and double precision, relative to the scale of the answer


@dataclass(frozen=True)
class Order:
    """The nodes in angle and radius, by precision."""

    single: tuple[int, int]
    double: tuple[int, int]


# For entire functions, and for those with poles beside the kink.
ORDERS = (Order((10, 8), (32, 24)), Order((20, 16), (60, 60)))


def meets(f: Piecewise, g: Piecewise) -> bool:
    """Whether both factors have their one kink at zero."""
    return all(len(h.pieces) == 2 and h.pieces[1].low == 0 and not h.parameters for h in (f, g))


@functools.cache
def radial_rule(n: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the n-point Gauss rule for the weight r exp(-r^2/2) on [0, reach], by Stieltjes' procedure on a fine grid
    (W. Gautschi, "Orthogonal Polynomials", 2004, section 2.2.3), and Golub and Welsch's eigenvalues.

    >>> r, weights = radial_rule(8, 9.5)
    >>> round(float(weights @ r**2), 10)
    2.0
    """
    nodes, weights = (t.astype(np.longdouble) for t in special.gauss_legendre(200))
    r = reach * nodes
    measure = reach * weights * r * np.exp(-r * r / 2)
    before, here = np.zeros_like(r), np.ones_like(r)
    centres, norms = [], [np.sum(measure)]
    for k in range(n):
        square = measure * here * here
        centres.append(np.sum(square * r) / np.sum(square))
        before, here = here, (r - centres[k]) * here - (norms[k] / norms[k - 1] if k else 0) * before
        norms.append(np.sum(measure * here * here))
    off = np.sqrt(np.array([norms[k + 1] / norms[k] for k in range(n - 1)], float))
    places, vectors = np.linalg.eigh(np.diag(np.array(centres, float)) + np.diag(off, 1) + np.diag(off, -1))
    return places, float(norms[0]) * vectors[0] ** 2


def mean_wedges(f: Piecewise, g: Piecewise, order: Order) -> Value:
    """E[f(s_u x) g(s_v (rho x + w y))] as a function of one-dimensional arrays (s_u, s_v, rho, w)."""
    (f_left, f_right), (g_left, g_right) = f.functions, g.functions

    def value(s_u: jax.Array, s_v: jax.Array, rho: jax.Array, w: jax.Array) -> jax.Array:
        angles, radii = order.double if special.is_double(s_u) else order.single
        rules = (*special.gauss_legendre(angles), *radial_rule(radii, _REACH))
        nodes, weights, r, radial = (jnp.asarray(x, s_u.dtype) for x in rules)
        phi = special.angle(rho, w)
        total = jnp.zeros_like(s_u)
        for angle, same in ((math.pi - phi, True), (phi, False)):
            t = angle[:, None] * nodes
            u = (s_u[:, None] * jnp.sin(t))[..., None] * r
            v = (s_v[:, None] * jnp.sin(angle[:, None] - t))[..., None] * r
            g_with, g_against = (g_right(v), g_left(-v)) if same else (g_left(-v), g_right(v))
            both = f_right(u) * g_with + f_left(-u) * g_against
            total = total + angle * jnp.sum(weights * jnp.sum(radial * both, axis=-1), axis=-1)
        return total / (2 * math.pi)

    return value


@dataclass(frozen=True)
class Wedges:
    """The rule for one product, and the variances up to which it is as good as the panels, by precision."""

    value: Value
    single: float
    double: float

    def hold(self, variance: jax.Array) -> jax.Array:
        """Whether it is to be taken, at the larger variance."""
        return variance <= (self.double if special.is_double(variance) else self.single)


def preferred(good: Callable[..., jax.Array], fast: Value, slow: Value) -> Value:
    """`fast` where it is good, `slow`, which is only worked out where some element needs it, elsewhere."""

    def value(*arrays: jax.Array) -> jax.Array:
        where, usual = good(*arrays), fast(*arrays)
        other = jax.lax.cond(jnp.all(where), lambda *_: jnp.zeros_like(usual), slow, *arrays)
        return jnp.where(where, usual, other)

    return value


def wedges(f: Piecewise, g: Piecewise) -> Wedges | None:
    """The rule with the fewest nodes that reaches variance 1 in both precisions; None where none does or kinks are elsewhere."""
    if not meets(f, g):
        return None
    shape = (len(_VARIANCES), len(_CORRELATIONS))
    s = np.sqrt(np.broadcast_to(np.array(_VARIANCES)[:, None], shape).reshape(-1))
    rho = np.broadcast_to(_CORRELATIONS, shape).reshape(-1)
    law = [s, s, rho, np.sqrt((1 - rho) * (1 + rho))]
    left, right = (h.resolved() for h in (f, g))

    def exact(*law: jax.Array) -> tuple[jax.Array, ...]:
        square = (h.mapped(lambda k: lambda z: k(z) ** 2) for h in (left, right))
        return mean_two(left, right)(*law), *(
            mean_one(h, jnp.zeros_like(s), s, ()) for h, s in zip(square, law, strict=False)
        )

    with jax.enable_x64(True):
        want, *squares = map(np.asarray, by_numpy(exact)(*law))
        scale = np.sqrt(squares[0] * squares[1])
        for order in ORDERS:
            value = mean_wedges(f, g, order)
            both = by_numpy(lambda a, b: (value(*a), value(*b)))([x.astype(np.float32) for x in law], law)  # noqa: B023
            single, double = (
                reach(np.asarray(got, float).reshape(shape), want.reshape(shape), scale.reshape(shape), agreed)
                for got, agreed in zip(both, AGREED, strict=True)
            )
            if min(single, double) >= 1:
                return Wedges(value, single, double)
    return None


def reach(
    got: np.ndarray, want: np.ndarray, scale: np.ndarray, agreed: float, variances: Sequence[float] = _VARIANCES
) -> float:
    """The variance up to which all rows of `got` (variances falling, correlations) agree with those of `want`; 0 where none does."""
    with np.errstate(all="ignore"):
        off = np.where(got == want, 0, np.abs(got - want) / scale)
    good = np.where(np.isfinite(off), off, np.inf).max(axis=1) <= agreed
    return next((float(q) for k, q in enumerate(variances) if good[k:].all()), 0.0)
