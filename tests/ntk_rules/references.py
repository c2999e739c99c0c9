"""Independent values: Gaussian integrals by panels in the plane, and by mpmath, never through the rules of ntk_rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath as mp
import numpy as np
import sympy as sp

from ntk_rules.functions import elementary

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


def mean(f: sp.Expr, q: float, kinks: Sequence[mp.mpf] = ()) -> mp.mpf:
    """E[f(z)] for the one symbol z of f, with 50 digits; panels end at kinks at 0, -1, 1 and `kinks`, and crowd around 0 and 1."""
    with mp.workdps(50):
        (z,) = f.free_symbols or {sp.Symbol("z")}
        plain = elementary(f).rewrite(sp.Piecewise) if f.has(sp.Heaviside, sp.Max, sp.Min, sp.Abs) else elementary(f)
        g, s = sp.lambdify(z, plain, "mpmath"), mp.sqrt(mp.mpf(q))
        steps = [mp.mpf(10) ** k / 4 for k in range(-4, 3)]  # of z = s x
        places = {mp.mpf(j) / 2 for j in range(-28, 29)} | {sign * step / s for step in steps for sign in (-1, 1)}
        places |= {(1 + sign * step) / s for step in steps for sign in (-1, 1)} | {-1 / s, 1 / s}
        places |= {kink / s for kink in kinks}
        edges = sorted(x for x in places if abs(x) <= 14)
        return mp.quad(lambda x: g(s * x) * mp.npdf(x), edges, maxdegree=5)


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


def polar(f: Callable, law: tuple[float, float, float], lines: Sequence[tuple[float, float]]) -> float:
    """E[f(u, v)] in polar coordinates of the whitened plane; f may have kinks where a u + b v = 0, (a, b) in `lines`."""
    q1, q2, c = law
    s, r = np.sqrt(q1), c / np.sqrt(q1)
    w = np.sqrt(q2 - r * r)
    cuts = [np.arctan2(-(a * s + b * r), b * w) % np.pi for a, b in lines]
    angles = np.array(sorted({*np.linspace(0, 2 * np.pi, 17), *cuts, *(cut + np.pi for cut in cuts)}))
    x, weight = np.polynomial.legendre.leggauss(40)
    radii = np.linspace(0, 12, 25)
    (t, dt), (radius, dr) = (
        (
            ((e[1:] + e[:-1])[:, None] / 2 + np.diff(e)[:, None] / 2 * x).ravel(),
            (np.diff(e)[:, None] / 2 * weight).ravel(),
        )
        for e in (angles, radii)
    )
    x, y = radius[:, None] * np.cos(t), radius[:, None] * np.sin(t)
    return float((dr * radius * np.exp(-radius * radius / 2)) @ np.asarray(f(s * x, r * x + w * y)) @ dt / (2 * np.pi))


def standard_mean(g: Callable, places: Sequence[float]) -> float:
    """E[g(x)] for standard Gaussian x, by panels that end at `places` and at fixed ones; float64."""
    edges = np.unique(np.clip([-14, -8, -4, -2, -1, 0, 1, 2, 4, 8, 14, *places], -14, 14))
    x, w = np.polynomial.legendre.leggauss(40)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    nodes = (middle + half * x).ravel()
    return float((half * w).ravel() @ (g(nodes) * np.exp(-nodes * nodes / 2)) / np.sqrt(2 * np.pi))


def split_plane(
    f: Callable,
    g: Callable,
    law: tuple[float, float, float],
    kinks: tuple[Sequence[float], Sequence[float]],
    width: float = 12.0,
) -> float:
    """E[f(u) g(v)] for kinks of f and g anywhere: Gauss-Legendre between them, v given u inside; float64, |rho| < 0.99."""
    q1, q2, c = law
    s1, gain = np.sqrt(q1), c / q1
    std = np.sqrt(q2 - c * gain)
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half, middle = np.diff(edges, axis=0) / 2, (edges[1:] + edges[:-1]) / 2
        shape = (-1, *edges.shape[1:])
        x = np.moveaxis(middle[..., None] + half[..., None] * nodes, -1, 1).reshape(shape)
        return x, np.moveaxis(half[..., None] * weights, -1, 1).reshape(shape)

    fixed = np.linspace(-width, width, 13)
    met = [(k / gain + d * std / abs(gain)) / s1 for k in kinks[1] for d in (-6, -3, 0, 3, 6)] if gain else []
    x, dx = panels(np.unique(np.clip([*fixed, *(np.asarray(kinks[0]) / s1), *met], -width, width)))
    u = s1 * x
    edges = [np.full_like(u, e) for e in fixed] + [np.clip((k - gain * u) / std, -width, width) for k in kinks[1]]
    y, dy = panels(np.sort(np.stack(edges), axis=0))
    inner = np.sum(dy * np.exp(-y * y / 2) * np.asarray(g(gain * u + std * y)), axis=0)
    return float(np.sum(dx * np.exp(-x * x / 2) * np.asarray(f(u)) * inner) / (2 * np.pi))
