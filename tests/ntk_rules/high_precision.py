"""E[F(u) G(v)] with many digits for functions made of pieces p(z) exp(k z) and delta functions, and its derivatives by Price's theorem.

Nothing here is shared with `ntk_rules`: G is integrated given u, in the normal density and distribution function; what is left
is an integral over u, by Gauss-Legendre on panels that crowd around kinks and transitions, or a derivative at a kink.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mpmath as mp

DIGITS = 50
_NODES, _REACH = 24, 13


@dataclass(frozen=True)
class Part:
    """sum_n poly[n] z^n exp(rate z) between low and high."""

    low: float
    high: float
    poly: tuple[mp.mpf, ...]
    rate: float = 0

    def at(self, z: mp.mpf) -> mp.mpf:
        return mp.polyval(self.poly[::-1], z) * (mp.exp(self.rate * z) if self.rate else 1)


@dataclass(frozen=True)
class Distribution:
    """Smooth parts, and delta functions (place, order, coefficient)."""

    parts: tuple[Part, ...]
    deltas: tuple[tuple[float, int, mp.mpf], ...] = ()

    @property
    def kinks(self) -> list[float]:
        ends = {e for p in self.parts for e in (p.low, p.high) if not math.isinf(e)}
        return sorted(ends | {a for a, _, _ in self.deltas})

    def at(self, z: mp.mpf) -> mp.mpf:
        """The value of the smooth parts, half of both sides at a kink."""
        inside = sum((p.at(z) for p in self.parts if p.low < z < p.high), mp.mpf(0))
        return inside + sum((p.at(z) for p in self.parts if z in (p.low, p.high)), mp.mpf(0)) / 2

    def derivative(self) -> Distribution:
        parts, deltas = [], [(a, n + 1, c) for a, n, c in self.deltas]
        for p in self.parts:
            slopes = [(n + 1) * c for n, c in enumerate(p.poly[1:])]
            poly = [a + p.rate * b for a, b in zip([*slopes, mp.mpf(0)], p.poly, strict=True)]
            poly = poly[: len(poly) if p.rate else -1]
            if any(poly):
                parts.append(Part(p.low, p.high, tuple(poly), p.rate))
            deltas += [(e, 0, sign * p.at(mp.mpf(e))) for e, sign in ((p.low, 1), (p.high, -1)) if not math.isinf(e)]
        sums: dict[tuple[float, int], mp.mpf] = {}
        for a, n, c in deltas:
            sums[(a, n)] = sums.get((a, n), mp.mpf(0)) + c
        return Distribution(tuple(parts), tuple((a, n, c) for (a, n), c in sums.items() if abs(c) > mp.mpf(10) ** -30))


def pieces(*parts: tuple[float, float, Sequence[float], float]) -> Distribution:
    """A function from (low, high, polynomial, rate)."""
    with mp.workdps(DIGITS):
        return Distribution(tuple(Part(a, b, tuple(map(mp.mpf, poly)), rate) for a, b, poly, rate in parts))


@dataclass(frozen=True)
class Bell:
    """constant + factor times the order-th derivative of erf(slope z + shift)."""

    slope: mp.mpf
    shift: mp.mpf
    factor: mp.mpf
    constant: mp.mpf
    order: int = 0
    deltas: tuple[tuple[float, int, mp.mpf], ...] = ()

    @property
    def parts(self) -> tuple[Bell, ...]:
        return (self,)

    @property
    def kinks(self) -> list[mp.mpf]:
        """None, but panels end about where it is steep."""
        return [(k - self.shift) / self.slope for k in range(-4, 5)]

    def at(self, z: mp.mpf) -> mp.mpf:
        return self.given(z, mp.mpf(0))

    def derivative(self) -> Bell:
        return replace(self, order=self.order + 1, constant=mp.mpf(0))

    def given(self, mean: mp.mpf, std: mp.mpf) -> mp.mpf:
        """E[f(mean + std x)]: erf((slope mean + shift)/(1 + 2 slope^2 std^2)^(1/2)), and its derivatives in the mean."""
        width = mp.sqrt(1 + 2 * (self.slope * std) ** 2)
        t, gain = (self.slope * mean + self.shift) / width, self.slope / width
        if self.order == 0:
            return self.constant + self.factor * mp.erf(t)
        hermite = [mp.mpf(1), 2 * t]
        for n in range(1, self.order):
            hermite.append(2 * t * hermite[n] - 2 * n * hermite[n - 1])
        bell = (-gain) ** (self.order - 1) * hermite[self.order - 1] * mp.exp(-t * t)
        return self.constant + self.factor * gain * 2 / mp.sqrt(mp.pi) * bell


Function = Distribution | Bell


def _normal_between(low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """P(low < x < high)."""
    if low > 0:
        low, high = -high, -low
    root = mp.sqrt(2)
    return (mp.erfc(-high / root) - mp.erfc(-low / root)) / 2


def _truncated(part: Part, mean: mp.mpf, std: mp.mpf) -> mp.mpf:
    """E[part(mean + std x)], by the recurrence of truncated moments."""
    centre = mean + part.rate * std**2
    ends = [(mp.mpf(e) - centre) / std for e in (part.low, part.high)]
    edges = [mp.mpf(0) if mp.isinf(x) else mp.npdf(x) / std for x in ends]
    moments = [_normal_between(*ends)]
    for n in range(1, len(part.poly)):
        jump = sum(
            s * (0 if math.isinf(e) else mp.mpf(e) ** (n - 1) * d)
            for s, e, d in zip((-1, 1), (part.low, part.high), edges, strict=True)
        )
        moments.append(centre * moments[-1] + ((n - 1) * moments[-2] if n > 1 else 0) * std**2 - std**2 * jump)
    total = mp.fsum(c * m for c, m in zip(part.poly, moments, strict=True))
    return total * mp.exp(part.rate * mean + part.rate**2 * std**2 / 2) if part.rate else total


def _density_derivative(x: mp.mpf, std: mp.mpf, order: int) -> mp.mpf:
    """d^order/dx^order of the density of N(0, std^2)."""
    t = x / std
    hermite = [mp.mpf(1), t]
    for n in range(1, order):
        hermite.append(t * hermite[n] - n * hermite[n - 1])
    return (-1) ** order * hermite[order] * mp.npdf(t) / std ** (order + 1)


def _given(g: Function, mean: mp.mpf, std: mp.mpf) -> mp.mpf:
    """E[g(mean + std x)]."""
    if isinstance(g, Bell):
        return g.given(mean, std)
    smooth = mp.fsum(_truncated(p, mean, std) for p in g.parts)
    return smooth + mp.fsum(c * (-1) ** n * _density_derivative(a - mean, std, n) for a, n, c in g.deltas)


@functools.cache
def _legendre(n: int) -> list[tuple[mp.mpf, mp.mpf]]:
    """Nodes and weights on [0, 1]."""
    with mp.workdps(DIGITS):
        out = []
        for k in range(n):
            x = mp.cos(mp.pi * (k + mp.mpf(3) / 4) / (n + mp.mpf(1) / 2))
            for _ in range(8):
                p0, p1 = mp.mpf(1), x
                for j in range(1, n):
                    p0, p1 = p1, ((2 * j + 1) * x * p1 - j * p0) / (j + 1)
                slope = n * (p0 - x * p1) / (1 - x * x)
                x -= p1 / slope
            out.append(((x + 1) / 2, 1 / ((1 - x * x) * slope**2)))
        return out


def _integral(f, points: Sequence[mp.mpf], finest: Sequence[mp.mpf]) -> mp.mpf:
    """int f(x) over |x| < reach; around each of `points` panels grow fourfold from its `finest`."""
    edges = {mp.mpf(-_REACH), mp.mpf(_REACH), *(mp.mpf(k) for k in range(-12, 13, 2))}
    for p, width in zip(points, finest, strict=True):
        edges.add(p)
        while width < 2:
            edges |= {p - width, p + width}
            width *= 4
    inside = sorted(e for e in edges if abs(e) <= _REACH)
    total = mp.mpf(0)
    for a, b in itertools.pairwise(inside):
        total += (b - a) * mp.fsum(w * f(a + (b - a) * t) for t, w in _legendre(_NODES))
    return total


def pair(f: Function, g: Function, q1: float, q2: float, c: float) -> mp.mpf:
    """E[f(u) g(v)] for variances q1, q2 > 0 and covariance c, |c| <= sqrt(q1 q2); exact numbers, `DIGITS` digits."""
    with mp.workdps(DIGITS + 10):
        q1, q2, c = map(mp.mpf, (q1, q2, c))
        s1, rest = mp.sqrt(q1), q2 - c * c / q1
        if rest < q2 * mp.mpf(10) ** -40:
            return _line(f, g, s1, c / q1)
        std, gain = mp.sqrt(rest), c / q1
        total = mp.mpf(0)
        if f.parts:
            wide, across = (max(std, 1) / (abs(gain) * s1), std / (abs(gain) * s1)) if gain else (mp.inf, mp.inf)
            places = [mp.mpf(k) / s1 for k in f.kinks]
            finest = [min(1, 1 / s1, wide) / 2 for _ in places]
            if across < 100:  # where the kinks of g are met
                places += [k / (gain * s1) for k in g.kinks]
                finest += [min(1, across, 1 / s1) / 2 for _ in g.kinks]
            total += _integral(lambda x: mp.npdf(x) * f.at(s1 * x) * _given(g, gain * s1 * x, std), places, finest)
        for a, n, coefficient in f.deltas:
            total += coefficient * (-1) ** n * _at_kink(g, mp.mpf(a), n, s1, gain, std)
        return total


def _at_kink(g: Function, a: mp.mpf, order: int, s1: mp.mpf, gain: mp.mpf, std: mp.mpf) -> mp.mpf:
    """d^order/du^order of p(u) E[g | u] at a."""
    terms = []
    for j in range(order + 1):
        terms.append(mp.binomial(order, j) * _density_derivative(a, s1, order - j) * gain**j * _given(g, gain * a, std))
        g = g.derivative() if j < order else g
    return mp.fsum(terms)


def _line(f: Function, g: Function, s1: mp.mpf, gain: mp.mpf) -> mp.mpf:
    """At correlation +-1: v = gain u. The finite part: halfway at jumps, and nothing where two delta functions meet."""
    places = [mp.mpf(k) / s1 for k in f.kinks] + [k / (gain * s1) for k in g.kinks]
    finest = [min(1, 1 / s1, 1 / (abs(gain) * s1)) / 2 for _ in places]
    smooth = _integral(lambda x: mp.npdf(x) * f.at(s1 * x) * g.at(gain * s1 * x), places, finest)
    return smooth + _on_line(f, g, s1, gain) + _on_line(g, f, abs(gain) * s1, 1 / gain)


def _on_line(f: Function, g: Function, std: mp.mpf, gain: mp.mpf) -> mp.mpf:
    """The delta functions of f times the smooth parts of g."""
    total = mp.mpf(0)
    for a, n, coefficient in f.deltas:
        h = g
        for j in range(n + 1):
            slope = mp.binomial(n, j) * _density_derivative(mp.mpf(a), std, n - j) * gain**j * h.at(gain * a)
            total += coefficient * (-1) ** n * slope
            h = h.derivative()
    return total


def price(f: Function, g: Function, orders: tuple[int, int], law: tuple[float, float, float]) -> mp.mpf:
    """E[f^(m)(u) g^(n)(v)], orders = (m, n): d/dC_01 is (1, 1), d/dC_00 half of (2, 0), and so on.

    The one differentiated more often goes first: of its delta functions nothing has to be integrated, where the other order would
    integrate a fourth derivative of what is steep near correlation 1.
    """
    if orders[1] > orders[0]:
        return price(g, f, (orders[1], orders[0]), (law[1], law[0], law[2]))
    for _ in range(orders[0]):
        f = f.derivative()
    for _ in range(orders[1]):
        g = g.derivative()
    return pair(f, g, *law)


def bell(slope: float, shift: float = 0, factor: float = 1, constant: float = 0) -> Bell:
    """constant + factor erf(slope z + shift)."""
    with mp.workdps(DIGITS):
        return Bell(*map(mp.mpf, (slope, shift, factor, constant)))


_INF = math.inf
PIECES: dict[str, Function] = {
    "relu": pieces((0, _INF, (0, 1), 0)),
    "abs": pieces((-_INF, 0, (0, -1), 0), (0, _INF, (0, 1), 0)),
    "step": pieces((0, _INF, (1,), 0)),
    "elu": pieces((0, _INF, (0, 1), 0), (-_INF, 0, (1,), 1), (-_INF, 0, (-1,), 0)),
    "relu6": pieces((0, 6, (0, 1), 0), (6, _INF, (6,), 0)),
    "hard tanh": pieces((-_INF, -1, (-1,), 0), (-1, 1, (0, 1), 0), (1, _INF, (1,), 0)),
    "hard sigmoid": pieces((-3, 3, (0.5, 1 / mp.mpf(6)), 0), (3, _INF, (1,), 0)),
    "hard swish": pieces((-3, 3, (0, 0.5, 1 / mp.mpf(6)), 0), (3, _INF, (0, 1), 0)),
    "celu": pieces((0, _INF, (0, 1), 0), (-_INF, 0, (2,), 0.5), (-_INF, 0, (-2,), 0)),
    "threshold": pieces((1, _INF, (0, 1), 0), (-_INF, 1, (20,), 0)),
    "squared relu": pieces((0, _INF, (0, 0, 1), 0)),
    "offset relu": pieces((-0.5, _INF, (0.5, 1), 0)),
    "erf": bell(1),
    "offset erf": bell(2, 0.75),
    "sigmoid-like": bell(1 / 2.4020563531719796, factor=0.5, constant=0.5),
}
