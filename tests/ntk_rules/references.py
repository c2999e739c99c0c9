"""Independent values: Gaussian integrals by panels in the plane, and by mpmath, never through ntk_rules."""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

_EDGES = np.array([-13.0, -6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 13.0])


def _line(nodes: int = 48) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = np.diff(_EDGES)[:, None] / 2
    middle = (_EDGES[1:] + _EDGES[:-1])[:, None] / 2
    return (middle + half * x).ravel(), (half * w).ravel()


def plane(f: Callable, g: Callable, q1: float, q2: float, c: float) -> float:
    """E[f(u) g(v)] for variances near 1; kinks of f and g at integers -3, -1, 0, 1, 3, 6 are panel edges."""
    x, w = _line()
    u, v = np.meshgrid(x, x, indexing="ij")
    d = q1 * q2 - c * c
    density = np.exp(-(q2 * u * u - 2 * c * u * v + q1 * v * v) / (2 * d)) / (2 * np.pi * np.sqrt(d))
    return float(w @ (f(u) * g(v) * density) @ w)


def line(f: Callable, q: float) -> float:
    """E[f(u)] likewise."""
    x, w = _line()
    return float(w @ (f(x) * np.exp(-x * x / (2 * q)) / np.sqrt(2 * np.pi * q)))


def bivariate_normal(h: float, k: float, r: float) -> mp.mpf:
    """P(x < h, y < k) by Plackett's identity, an integral over the correlation's angle, 25 digits."""
    with mp.workdps(25):
        h, k, r = mp.mpf(h), mp.mpf(k), mp.mpf(r)

        def integrand(theta: mp.mpf) -> mp.mpf:
            return mp.exp(-(h * h + k * k - 2 * h * k * mp.sin(theta)) / (2 * mp.cos(theta) ** 2))

        end = mp.asin(r)
        # Panels halve towards the end, where the integrand may fall off within sqrt(1 - r^2).
        edges = [end * (1 - mp.mpf(2) ** -j) for j in range(0, 40, 2)] + [end]
        return mp.ncdf(h) * mp.ncdf(k) + mp.quad(integrand, edges) / (2 * mp.pi)
