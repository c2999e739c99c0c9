"""Gaussian expectations by brute force, for functions without a closed form.

``dual`` makes a :class:`~tests.references.duals.Dual` of any phi that is smooth on
either side of zero.  In polar coordinates u = s1 r cos(t), v = s2 r cos(t - w),
cos w = correlation, a kink at zero is a ray at a known angle; between the rays the
integrand is analytic, and Gauss-Legendre converges geometrically there.

``folded_expectation`` is the same in four dimensions, for a kink in a pooled argument;
``expectation`` is a plain tensor-product Gauss-Hermite rule in any number of dimensions,
for smooth functions; ``adaptive_pair`` is QUADPACK's adaptive rule, a few points at a
time, against which the others are tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import quad

from tests.references.duals import Array, Dual

RADIUS = 12.5  # exp(-12.5^2 / 2) < 1e-33
_RADIAL_PANELS, _RADIAL_ORDER, _ANGULAR_ORDER = 10, 24, 32


def _legendre(lower: float | Array, upper: float | Array, order: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [lower, upper]; the limits may be arrays."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    lower, upper = np.asarray(lower)[..., None], np.asarray(upper)[..., None]
    half = (upper - lower) / 2
    return lower + half * (nodes + 1), half * weights


def _radial_rule(panels: int, order: int, radius: float) -> tuple[Array, Array]:
    edges = np.linspace(0.0, radius, panels + 1)
    r, w = _legendre(edges[:-1], edges[1:], order)
    r, w = r.ravel(), w.ravel()
    return r, w * r * np.exp(-r * r / 2) / (2 * np.pi)


def _sectors(q1: float, q2: float, c: float, order: int) -> tuple[Array, Array, float]:
    """Angular nodes and weights between the rays u = 0 and v = 0, and the angle w between u and v."""
    norm = np.sqrt(q1 * q2)
    w = float(np.arccos(np.clip(c / norm, -1.0, 1.0))) if norm > 0 else 0.0
    rays = sorted((a % (2 * np.pi)) for a in (np.pi / 2, -np.pi / 2, w + np.pi / 2, w - np.pi / 2))
    edges = np.array([*rays, rays[0] + 2 * np.pi])
    t, wt = _legendre(edges[:-1], edges[1:], order)
    return t.ravel(), wt.ravel(), w


def pair_expectation(f: Callable[[Array], Array], g: Callable[[Array], Array], q1: float, q2: float, c: float) -> float:
    """E[f(u) g(v)] for one Gaussian pair; f and g smooth on either side of zero."""
    t, wt, w = _sectors(q1, q2, c, _ANGULAR_ORDER)
    t, wt = t[:, None], wt[:, None]
    r, wr = _radial_rule(_RADIAL_PANELS, _RADIAL_ORDER, RADIUS)
    u = np.sqrt(q1) * r * np.cos(t)
    v = np.sqrt(q2) * r * np.cos(t - w)
    return float(np.sum(wt * wr * f(u) * g(v)))


def mean_expectation(f: Callable[[Array], Array], q: float) -> float:
    """E[f(u)], Var u = q; f smooth on either side of zero."""
    edges = np.linspace(-RADIUS, RADIUS, 2 * _RADIAL_PANELS + 1)
    z, w = _legendre(edges[:-1], edges[1:], _RADIAL_ORDER)
    z, w = z.ravel(), w.ravel() * np.exp(-(z.ravel() ** 2) / 2) / np.sqrt(2 * np.pi)
    return float(np.sum(w * f(np.sqrt(q) * z)))


def dual(phi: Callable[[Array], Array], slope: Callable[[Array], Array], name: str) -> Dual:
    """The dual of phi by quadrature; ``slope`` is phi', both smooth on either side of zero."""

    def pairwise(f: Callable[[Array], Array]) -> Callable[[Array, Array, Array], Array]:
        one = np.vectorize(lambda q1, q2, c: pair_expectation(f, f, q1, q2, c), otypes=[float])
        return lambda q1, q2, c: one(q1, q2, c)

    mean = np.vectorize(lambda q: mean_expectation(phi, q), otypes=[float])
    return Dual(name, pairwise(phi), pairwise(slope), mean)


def expectation(f: Callable[..., Array], covariance: Array, order: int = 32) -> float:
    """E[f(z_1, .., z_k)], z ~ N(0, covariance), by an order^k Gauss-Hermite rule; f smooth.

    The covariance may be singular: the square root is taken by eigenvalues.
    """
    covariance = np.asarray(covariance, float)
    values, vectors = np.linalg.eigh(covariance)
    keep = values > 1e-14 * max(values.max(), 0.0)
    root = vectors[:, keep] * np.sqrt(values[keep])
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    k = root.shape[1]
    grid = np.stack(np.meshgrid(*[nodes] * k, indexing="ij")).reshape(k, -1)
    weight = np.prod(np.stack(np.meshgrid(*[weights] * k, indexing="ij")).reshape(k, -1), axis=0)
    return float(np.sum(weight * f(*(root @ grid))))


def folded_expectation(f: Callable[..., Array], covariance: Array, order: int = 16) -> float:
    """E[f(a1, a2, b1, b2)], smooth but for kinks where a1 + a2 = 0 or b1 + b2 = 0.

    The two sums are integrated in polar coordinates between the kinks; given them, the two
    differences are Gaussian and get a Gauss-Hermite rule.
    """
    turn = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, -1, 0, 0], [0, 0, 1, -1]]) / np.sqrt(2)
    c = turn @ np.asarray(covariance, float) @ turn.T
    gain = c[2:, :2] @ np.linalg.pinv(c[:2, :2], rcond=1e-13, hermitian=True)
    values, vectors = np.linalg.eigh(c[2:, 2:] - gain @ c[:2, 2:])
    root = vectors * np.sqrt(np.maximum(values, 0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    pair = np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1)
    weight = np.outer(weights, weights).ravel() / weights.sum() ** 2
    t, wt, w = _sectors(c[0, 0], c[1, 1], c[0, 1], order)
    r, wr = _radial_rule(3, order, 8.0)  # exp(-32) = 1e-14
    total = 0.0
    for angle, outer in zip(t, wt, strict=True):
        sums = np.stack([np.sqrt(c[0, 0]) * np.cos(angle) * r, np.sqrt(c[1, 1]) * np.cos(angle - w) * r])
        means = gain @ sums
        differences = means[:, :, None] + (root @ pair)[:, None, :]
        s, d = sums[:, :, None], differences
        z = turn.T @ np.stack([*np.broadcast_arrays(s[0], s[1], d[0], d[1])]).reshape(4, -1)
        total += outer * np.sum(wr[:, None] * weight * f(*z).reshape(len(r), -1))
    return float(total)


def adaptive_pair(f: Callable[[float], float], g: Callable[[float], float], q1: float, q2: float, c: float) -> float:
    """E[f(u) g(v)] by QUADPACK's adaptive rule, nested, split at u = 0 and at v = 0.

    ``f`` and ``g`` take and give Python floats.  The density of v given u is used, so
    |correlation| < 1 is needed.  Slow: a witness for a few points.
    """
    s1 = math.sqrt(q1)
    gain, s = c / s1, math.sqrt(q2 - c * c / q1)
    density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    piece = lambda h, low, high: quad(h, low, high, epsabs=1e-15, epsrel=1e-13, limit=200)[0]

    def inner(a: float) -> float:
        kink = min(max(-gain * a / s, -9.0), 9.0)
        over = lambda b: g(gain * a + s * b) * density(b)
        return f(s1 * a) * (piece(over, -9.0, kink) + piece(over, kink, 9.0)) * density(a)

    return piece(inner, -9.0, 0.0) + piece(inner, 0.0, 9.0)
