"""Kernels of rotation invariant networks as series: functions of two norms and an angle, computed once and interpolated.

Where the kernel depends on its inputs only through |phi|, |phi'| and the angle between them (`tensorprog.kernel.invariant`), a
matrix of it needs no layer for each pair. With the kernel's own scale taken out,

    K(x, x') = s(x) s(x') k(log|phi|, log|phi'|, angle),    s(x)^2 = K(x, x),

k is bounded by one and smooth: the square roots that kinked nonlinearities have at cosines of 1 and -1 are none in the angle, in
which each layer is analytic. So its Chebyshev series converges geometrically. For homogeneous networks, and for inputs of equal
norms, k depends on the angle alone, and a pair costs one arc cosine and two short polynomials, whatever the depth.

The series is made in float64, from the kernel's own function of pairs, for the range of norms at hand; it is used where its last
coefficients are below the tolerance and it agrees at random places. Where it is not, the caller computes the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial.chebyshev import chebval, chebvander

__all__ = ["EQUAL", "TOLERANCE", "Series", "make_series"]

TOLERANCE = {np.dtype(np.float32): 2e-8, np.dtype(np.float64): 1e-13}  # of the coefficients left out, relative to k
AGREEMENT = {np.dtype(np.float32): 1e-7, np.dtype(np.float64): 1e-12}  # with the kernel at random places
MOST_ANGLES, MOST_NORMS = 128, 17
EQUAL = 1e-6  # range of log-norms that rounding makes
RANDOM = 1024  # places

# Both kernels, (2, N1, N2, A), of points of these log-norms, and of those, with these angles between them.
Samples = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Series:
    """Chebyshev series of one network's kernels over a range of norms; arrays are float64.

    low, high: log-norms. scales: (2, d) coefficients of log s. coefficients: (2, m, m, n), of k by both norms and the angle. The
    first axis: nngp, ntk.
    """

    low: float
    high: float
    scales: np.ndarray
    coefficients: np.ndarray

    def scale(self, norms: np.ndarray) -> np.ndarray:
        """s of inputs of these log-norms, (2, N)."""
        at = self._place(norms)
        return np.exp(np.stack([chebval(at, c) for c in self.scales]))

    def norm_basis(self, norms: np.ndarray) -> np.ndarray:
        """The polynomials of log-norms, (N, m)."""
        return chebvander(self._place(norms), self.coefficients.shape[1] - 1)

    def __call__(self, norms1: np.ndarray, norms2: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """The kernels of pairs, (2, N)."""
        in_angle = chebvander(angles * (2 / math.pi) - 1, self.coefficients.shape[3] - 1)
        by_norms = np.einsum(
            "kabd,pa,pb->kpd", self.coefficients, self.norm_basis(norms1), self.norm_basis(norms2), optimize=True
        )
        return self.scale(norms1) * self.scale(norms2) * np.einsum("kpd,pd->kp", by_norms, in_angle)

    def _place(self, norms: np.ndarray) -> np.ndarray:
        return (norms - (self.low + self.high) / 2) * (2 / max(self.high - self.low, 1e-300))


def make_series(sample: Samples, low: float, high: float, dtype: Any, homogeneous: bool) -> Series | None:
    """The series to the tolerance of `dtype`, or None where there is none short enough.

    sample: the kernels between points of the plane. homogeneous: k does not depend on the norms. Of norms that only rounding has parted,
    one is tried for all.
    """
    scales = _scales(sample, low, high, TOLERANCE[dtype])
    if scales is None:
        return None
    tried = (1,) if homogeneous or high - low < 1e-12 else (1, 3) if high - low <= EQUAL else (3,)
    found = (_fitted(sample, low, high, scales, dtype, norms) for norms in tried)
    return next((series for series in found if series is not None), None)


def _fitted(sample: Samples, low: float, high: float, scales: np.ndarray, dtype: Any, norms: int) -> Series | None:
    """The series of so many norms, or more if that is not 1."""
    tolerance, angles = TOLERANCE[dtype], 16
    while norms <= MOST_NORMS and angles <= MOST_ANGLES:
        at, turns = (low + high) / 2 + (high - low) / 2 * _nodes(norms), (_nodes(angles) + 1) * (math.pi / 2)
        scale = Series(low, high, scales, np.ones((2, 1, 1, 1))).scale(at)
        values = sample(at, at, turns) / (scale[:, :, None, None] * scale[:, None, :, None])
        if not np.all(np.isfinite(values)):
            return None
        values = (values + values.swapaxes(1, 2)) / 2  # k(u, v, t) = k(v, u, t)
        found = _transformed(values)
        size = np.abs(found)
        more_angles = size[..., -3:].max() > tolerance
        more_norms = norms > 1 and max(size[:, -1].max(), size[:, :, -1].max()) > tolerance
        if not (more_angles or more_norms):
            made = Series(low, high, scales, _trimmed(found, tolerance))
            return made if _agrees(made, sample, AGREEMENT[dtype]) else None
        norms, angles = 2 * norms - 1 if more_norms else norms, 2 * angles if more_angles else angles
    return None


def _scales(sample: Samples, low: float, high: float, tolerance: float) -> np.ndarray | None:
    """log s as a series in the log-norm."""
    one = high - low < 1e-12
    for n in (1,) if one else (16, 32):
        at = (low + high) / 2 + (high - low) / 2 * _nodes(n)
        own = np.diagonal(sample(at, at, np.zeros(1))[..., 0], axis1=1, axis2=2)
        if not np.all(np.isfinite(own)) or np.any(own < 0) or np.any((own == 0).any(1) != (own == 0).all(1)):
            return None
        frozen = own[:, :1] == 0  # nothing is trained: that kernel is zero
        found = _transformed(np.log(np.where(frozen, 1, own)) / 2)
        if one:
            return found[:, :1]
        if np.abs(found[:, -2:]).max() <= tolerance:
            return found[:, : _kept(np.abs(found).max(0), tolerance / 100)]
    return None


def _nodes(n: int) -> np.ndarray:
    return np.cos(math.pi * (np.arange(n) + 0.5) / n)


def _transformed(values: np.ndarray) -> np.ndarray:
    """From values at Chebyshev's nodes along every axis but the first to coefficients."""
    for axis in range(1, values.ndim):
        n = values.shape[axis]
        to = chebvander(_nodes(n), n - 1).T * (2 / n)
        to[0] /= 2
        values = np.moveaxis(np.tensordot(to, values, (1, axis)), 0, axis)
    return values


def _trimmed(coefficients: np.ndarray, tolerance: float) -> np.ndarray:
    """Without the last polynomials in the norms and in the angle, all of whose coefficients together are below the tolerance."""
    size = np.abs(coefficients)

    kept = lambda axes: _kept(size.sum(axes).max(0), tolerance)
    norms = max(kept((2, 3)), kept((1, 3)))
    return coefficients[:, :norms, :norms, : kept((1, 2))]


def _kept(size: np.ndarray, tolerance: float) -> int:
    """How many are left without the last ones, which together are below the tolerance."""
    rest = np.cumsum(size[::-1])[::-1]  # of this and all later ones
    return max(1, int(np.sum(rest > tolerance)))


def _agrees(series: Series, sample: Samples, tolerance: float) -> bool:
    """Does it agree with the kernel at random places, the ends of the angles among them?"""
    random = np.random.default_rng(0)
    norms = 1 if series.high - series.low < 1e-12 else 2 if series.coefficients.shape[1] == 1 else 8  # on either side
    first, second = (random.uniform(series.low, series.high, norms) for _ in range(2))
    turns = math.pi * random.beta(0.5, 0.5, RANDOM // norms**2)
    u, v, t = (grid.ravel() for grid in np.meshgrid(first, second, turns, indexing="ij"))
    difference = series(u, v, t) - sample(first, second, turns).reshape(2, -1)
    rounding = 8 * np.finfo(float).eps / np.sin(t)  # of the angle that the layers have from its cosine
    return bool(np.all(np.abs(difference) / (series.scale(u) * series.scale(v)) <= tolerance + rounding))
