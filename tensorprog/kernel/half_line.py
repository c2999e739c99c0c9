"""The nodes of integrals over a Laplace variable: int_0^inf s^(k/2-1) f(s) ds / Gamma(k/2).

With s = tan^2(theta) both ends are analytic in theta, whatever the half-integer powers of s there, so that Gauss-Legendre
nodes in theta converge geometrically; where e^(-s epsilon) cuts f off late, by a root of their number.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ntk_rules.special import gauss_legendre

__all__ = ["half_line"]


@lru_cache(maxsize=256)
def half_line(nodes: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes s and their weights for the power k >= 1."""
    x, w = gauss_legendre(nodes)
    theta, w = x * math.pi / 2, w * math.pi / 2
    return np.tan(theta) ** 2, 2 * np.tan(theta) ** (k - 1) / np.cos(theta) ** 2 * w / math.gamma(k / 2)
