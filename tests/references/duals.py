"""Dual activations in closed form: E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

(u, v) is a centred Gaussian pair with variances q1, q2 and covariance c.  Every
function takes the three as arrays of one shape and keeps their dtype, so that
``numpy.longdouble`` input gives longdouble output where the formula allows it.

Sources
  arc-cosine kernels (ReLU, step)   Cho & Saul 2009, section 2, kernels of degree 0 and 1
  erf                               Williams 1997, eq. (11); its derivative: Lee et al. 2019, appendix C
  GELU                              Tsuchida et al. 2021; derived again in ``gelu`` below
  sin, cos, exp                     the Gaussian characteristic function and its analytic continuation
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Pairwise = Callable[[Array, Array, Array], Array]

# Below this relative distance from |correlation| = 1 two arguments count as equal
# (or opposite).  Rounding leaves gaps of a few 1e-16 between variables that are one
# and the same, and arccos would turn those into angles of 1e-8.
COINCIDENCE = 1e-14


@dataclass(frozen=True)
class Dual:
    """What a recursion needs to know of a nonlinearity phi.

    value(q1, q2, c) = E[phi(u) phi(v)], slope(q1, q2, c) = E[phi'(u) phi'(v)],
    mean(q) = E[phi(u)] with Var u = q.
    """

    name: str
    value: Pairwise
    slope: Pairwise
    mean: Callable[[Array], Array]


def angle(q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
    """The angle between two Gaussians and sqrt(q1 q2 - c^2), accurate near 0 and pi."""
    norm = np.sqrt(q1) * np.sqrt(q2)
    below, above = norm - c, norm + c
    below = np.where(below <= COINCIDENCE * norm, 0, below)
    above = np.where(above <= COINCIDENCE * norm, 0, above)
    area = np.sqrt(below * above)
    return np.arctan2(area, c), area


# --------------------------------------------------------------------------- homogeneous


def abrelu(negative: float, positive: float, name: str = "abrelu") -> Dual:
    """phi(z) = positive * max(z, 0) + negative * min(z, 0), slopes on either side.

    With r = relu:  phi(z) = positive r(z) - negative r(-z), so everything follows from
    E[r(u) r(v)] = (sin t + (pi - t) cos t) |u||v| / 2 pi  and  E[r(u) r(-v)], the same
    at angle pi - t.
    """
    a, b = positive, negative

    def value(q1: Array, q2: Array, c: Array) -> Array:
        t, area = angle(q1, q2, c)
        same = (area + (np.pi - t) * c) / (2 * np.pi)
        opposite = (area - t * c) / (2 * np.pi)
        return (a * a + b * b) * same - 2 * a * b * opposite

    def slope(q1: Array, q2: Array, c: Array) -> Array:
        t, _ = angle(q1, q2, c)
        return ((a * a + b * b) * (np.pi - t) + 2 * a * b * t) / (2 * np.pi)

    def mean(q: Array) -> Array:
        return (a - b) * np.sqrt(q / (2 * np.pi))

    return Dual(name, value, slope, mean)


relu = abrelu(0.0, 1.0, "relu")
absolute = abrelu(-1.0, 1.0, "abs")
identity = Dual("identity", lambda q1, q2, c: c, lambda q1, q2, c: np.ones_like(c), np.zeros_like)


# --------------------------------------------------------------------------- erf family


def _erf_value(q1: Array, q2: Array, c: Array) -> Array:
    return 2 / np.pi * np.arcsin(2 * c / np.sqrt((1 + 2 * q1) * (1 + 2 * q2)))


def _erf_slope(q1: Array, q2: Array, c: Array) -> Array:
    return 4 / np.pi / np.sqrt((1 + 2 * q1) * (1 + 2 * q2) - 4 * c * c)


erf = Dual("erf", _erf_value, _erf_slope, np.zeros_like)


def _gelu_pieces(q1: Array, q2: Array, c: Array) -> tuple[Array, ...]:
    """With e(z) = erf(z / sqrt 2): E[e e], E[e(u) v e'(v)], E[u e'(u) e(v)], E[u e'(u) v e'(v)], det.

    e' = sqrt(2/pi) exp(-z^2/2) tilts the Gaussian: variances q -> q / (1 + q).
    """
    det = (1 + q1) * (1 + q2) - c * c
    root = np.sqrt(det)
    both = 2 / np.pi * np.arcsin(c / np.sqrt((1 + q1) * (1 + q2)))
    right = 2 / np.pi * c / ((1 + q2) * root)
    left = 2 / np.pi * c / ((1 + q1) * root)
    tilted = 2 / np.pi * c / (det * root)
    return both, right, left, tilted, root


def _gelu_value(q1: Array, q2: Array, c: Array) -> Array:
    """gelu = z (1 + e(z)) / 2, so 4 E = c + E[u v e(u) e(v)] (the odd terms vanish).

    Stein in u: E[u . v e(u) e(v)] = q1 E[v e'(u) e(v)] + c E[e(u) (e(v) + v e'(v))],
    and under the tilt by e'(u): E[v e'(u) e(v)] = (2/pi) q2' / root, q2' = q2 - c^2/(1+q1).
    """
    both, right, _, _, root = _gelu_pieces(q1, q2, c)
    conditional = 2 / np.pi * (q2 - c * c / (1 + q1)) / root
    return (c + q1 * conditional + c * (both + right)) / 4


def _gelu_slope(q1: Array, q2: Array, c: Array) -> Array:
    """gelu' = (1 + e + z e') / 2."""
    both, right, left, tilted, _ = _gelu_pieces(q1, q2, c)
    return (1 + both + right + left + tilted) / 4


def _gelu_mean(q: Array) -> Array:
    return q / np.sqrt(2 * np.pi * (1 + q))  # E[z e(z)] = q E[e'(z)]


gelu = Dual("gelu", _gelu_value, _gelu_slope, _gelu_mean)


# --------------------------------------------------------------------------- exponential family


def _sin_value(q1: Array, q2: Array, c: Array) -> Array:
    return np.exp(-(q1 + q2) / 2) * np.sinh(c)


def _cos_value(q1: Array, q2: Array, c: Array) -> Array:
    return np.exp(-(q1 + q2) / 2) * np.cosh(c)


def _exp_value(q1: Array, q2: Array, c: Array) -> Array:
    return np.exp((q1 + q2) / 2 + c)


sin = Dual("sin", _sin_value, _cos_value, np.zeros_like)
cos = Dual("cos", _cos_value, _sin_value, lambda q: np.exp(-q / 2))
exp = Dual("exp", _exp_value, _exp_value, lambda q: np.exp(q / 2))


# --------------------------------------------------------------------------- polynomials (Isserlis)

square = Dual(
    "square",
    lambda q1, q2, c: q1 * q2 + 2 * c * c,
    lambda q1, q2, c: 4 * c,
    lambda q: q,
)
cube = Dual(
    "cube",
    lambda q1, q2, c: 9 * q1 * q2 * c + 6 * c**3,
    lambda q1, q2, c: 9 * (q1 * q2 + 2 * c * c),
    np.zeros_like,
)

CLOSED = {d.name: d for d in (relu, absolute, identity, erf, gelu, sin, cos, exp, square, cube)}
