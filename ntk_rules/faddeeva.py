"""The normal integral at complex arguments, as expectations of waves times steps need it.

Through the Faddeeva function w(z) = exp(-z^2) erfc(-iz) in the upper half plane, where it is bounded by 1: a rational
function of (L + iz)/(L - iz) with coefficients from one discrete Fourier transform (J. A. C. Weideman, "Computation of
the complex error function", SIAM J. Numer. Anal. 31, 1994, eq 38 and section 4).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules.special import as_floats, is_double

_ORDER64, _ORDER32 = 40, 20
_FAR = 1e8  # where squares still have room in single precision, and the integral has long been 0 or 1


@functools.cache
def _expansion(order: int) -> tuple[float, tuple[float, ...]]:
    """(L, the coefficients of the polynomial in (L + iz)/(L - iz), lowest first)."""
    count = 2 * order
    length = math.sqrt(order / math.sqrt(2))
    angles = np.arange(1 - count, count) * math.pi / count
    t = length * np.tan(angles / 2)
    values = np.exp(-t * t) * (length * length + t * t)
    waves = np.cos(np.outer(np.arange(1, order + 1), angles))
    return length, tuple(waves @ values / (2 * count))


def faddeeva(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary part of w(x + iy) = exp(-z^2) erfc(-iz) for y >= 0.

    >>> [round(float(part), 5) for part in faddeeva(1.0, 0.0)]  # exp(-1), and 2/sqrt(pi) times Dawson's integral
    [0.36788, 0.60716]
    """
    x, y = as_floats(x, y)
    length, coefficients = _expansion(_ORDER64 if is_double(x) else _ORDER32)
    turned = jax.lax.complex(*jnp.broadcast_arrays(-y, x))  # iz
    below = 1 / (length - turned)
    ratio = (length + turned) * below
    total = jnp.full_like(ratio, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * ratio + c
    value = below * (2 * total * below + 1 / math.sqrt(math.pi))
    return value.real, value.imag


def wave_cdf(
    k: jax.Array, phase: jax.Array, mean: jax.Array, shift: jax.Array, std: jax.Array, rest: jax.Array
) -> jax.Array:
    """The real part of exp(k + i phase) Phi((mean + i shift)/std), with rest = k + (shift^2 - mean^2)/(2 std^2) known.

    Of the two tails that with w in the upper half plane is taken, so that nothing overflows: exp(rest) is bounded where
    exp(k) Phi is. At std = 0 the shift is 0, and the integral 0, 1/2 or 1.
    """
    k, phase, mean, shift, std, rest = as_floats(k, phase, mean, shift, std, rest)
    zero = std == 0
    safe = jnp.where(zero, 1, std)
    x, y = (jnp.clip(part / safe, -_FAR, _FAR) for part in (mean, shift))
    side = jnp.where(x > 0, -1, 1)  # Phi(z) = 1 - Phi(-z)
    real, imaginary = faddeeva(side * y * math.sqrt(0.5), jnp.abs(x) * math.sqrt(0.5))
    angle = phase - x * y
    tail = jnp.exp(rest) * (jnp.cos(angle) * real - jnp.sin(angle) * imaginary) / 2
    whole = jnp.exp(k) * jnp.cos(phase)
    return jnp.where(zero, whole * (1 + jnp.sign(mean)) / 2, jnp.where(x > 0, whole - tail, tail))
