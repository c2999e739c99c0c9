"""What tests of transposes share: products with a matrix, the kernels of a network, numbers to compare with."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

ONE = jnp.ones((1, 1))
X = jnp.array([[1.0, 0.4], [-0.3, 1.1], [0.5, -2.0]])


def times(w: jax.Array, h: jax.Array) -> jax.Array:
    """w h / sqrt(n)."""
    return w @ h / jnp.sqrt(nn.width())


def times_rows(h: jax.Array, w: jax.Array) -> jax.Array:
    return h @ w / jnp.sqrt(nn.width())


def square() -> jax.Array:
    return nn.weight((nn.width(), nn.width()))


def kernels(net: Callable, x: jax.Array = ONE) -> tuple[np.ndarray, np.ndarray]:
    found = uncompiled(tp.compile(net, x[0]), x)
    return np.asarray(found.nngp), np.asarray(found.ntk)


def close(found: object, wanted: object, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * float(np.abs(np.asarray(wanted)).max()))


def gaussian_mean(f: Callable) -> np.ndarray:
    """E f(z) over the last axis, by the trapezoidal rule, which converges geometrically."""
    z = np.linspace(-12, 12, 2401)
    return f(z) @ np.exp(-(z**2) / 2) * 0.01 / np.sqrt(2 * np.pi)


def pairs(k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q = np.diag(k)
    return q[:, None] + 0 * k, q[None] + 0 * k, k
