"""Sampling many Gaussians at once: points of a randomly shifted lattice, and factors of covariance matrices that may be
singular.

The points are the Richtmyer sequence, the fractional parts of i sqrt(p_k) for the primes p_k, under random shifts and the
baker's transformation (A. Genz, F. Bretz, "Comparison of methods for the computation of multivariate t probabilities",
J. Comput. Graph. Stat. 11, 2002), which has as many dimensions as one asks for. They are worked out in whole numbers, so
that they are the same in both precisions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri

__all__ = ["SEED", "SHIFTS", "factor", "no_mean", "normal_points"]

SEED, SHIFTS = 20, 8
LARGEST = 2**8  # one sample of so many is large
LEAST_INDEX = 1.25  # of tails that have a mean within reach, by an estimate


@lru_cache(maxsize=64)
def _steps(dimension: int) -> np.ndarray:
    """The fractional parts of the square roots of the first primes, in units of 2^-32."""
    primes: list[int] = []
    candidate = 2
    while len(primes) < dimension:
        if all(candidate % p for p in primes if p * p <= candidate):
            primes.append(candidate)
        candidate += 1
    return np.array([math.isqrt(p << 64) % 2**32 for p in primes], np.uint32)


def normal_points(shift: jax.Array, start: jax.Array, count: int, dimension: int, dtype: jnp.dtype) -> jax.Array:
    """(count, dimension) standard normal points, the `start`-th and following of one of `SHIFTS` shifted sequences."""
    moves = np.random.default_rng(SEED).integers(0, 2**32, (SHIFTS, dimension), dtype=np.uint32)
    index = jnp.asarray(start, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    whole = index[:, None] * jnp.asarray(_steps(dimension)) + jnp.asarray(moves)[shift]  # modulo 2^32
    unit = (whole >> 8).astype(dtype) * 2.0**-24 + 2.0**-25
    folded = 1 - jnp.abs(2 * unit - 1)
    return ndtri(jnp.clip(folded, 2.0**-24, 1 - 2.0**-24))


def factor(covariance: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """The lower Cholesky factor of matrices (.., n, n); a direction of no variance, but for rounding, gives zeros.

    scale: variances (.., n) of which rounding is a fraction, where they are not those on the diagonal.
    """
    n = covariance.shape[-1]
    if n == 0:
        return covariance
    variances = jnp.diagonal(covariance, axis1=-2, axis2=-1) if scale is None else scale
    floor = 8 * n * jnp.finfo(covariance.dtype).eps * variances
    if n == 1:
        safe = covariance > floor[..., None]
        return jnp.where(safe, jnp.sqrt(jnp.where(safe, covariance, 1)), 0)
    rows = jnp.arange(n)

    def column(j: jax.Array, lower: jax.Array) -> jax.Array:
        row = lax.dynamic_index_in_dim(lower, j, -2, keepdims=False)
        rest = lax.dynamic_index_in_dim(covariance, j, -1, keepdims=False) - jnp.einsum("...ik,...k->...i", lower, row)
        pivot = lax.dynamic_index_in_dim(rest, j, -1)
        safe = pivot > lax.dynamic_index_in_dim(floor, j, -1)
        made = jnp.where(safe & (rows >= j), rest / jnp.sqrt(jnp.where(safe, pivot, 1)), 0)
        return lax.dynamic_update_index_in_dim(lower, made, j, -1)

    return lax.fori_loop(0, n, column, jnp.zeros_like(covariance))


def no_mean(sizes: np.ndarray) -> bool:
    """Do positive samples (trials, entries) have tails so heavy that their mean is infinite, or out of reach?

    P(X > x) ~ x^-a has a mean for a > 1; a is estimated from the largest samples, to one part in the square root of their number (Hill 1975).
    """
    count = len(sizes) // LARGEST
    if count < 2**6:
        return False
    largest = np.sort(sizes, axis=0)[-count - 1 :]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.mean(np.log(largest[1:] / largest[0]), axis=0)
    return bool(np.any(np.where(largest[0] > 0, inverse, 0.0) > 1 / LEAST_INDEX))
