"""Inputs of zeros before any bias: a layer is then exactly zero, and jumps and slopes count what the code has at zero.

One hidden layer h = W x + b, b trainable and zero at the start: with q = |x|^2/d, NNGP(0, x) = f(0) E[f(sqrt(q) z)], and the biases add
f'(0) E[f'(sqrt(q) z)] to it in the NTK. f(0) and f'(0) are JAX's own, the means sums over a grid that zero is not on.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

X = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]])
STEP = 1e-4
GRID = (np.arange(-100_000, 100_000) + 0.5) * STEP
WEIGHTS = STEP * np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi)
FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "above": lambda h: jnp.where(h > 0, 1.0, 0.0),
    "not below": lambda h: jnp.where(h >= 0, 1.0, -0.5),
    "heaviside": lambda h: jnp.heaviside(h, 0.3),
    "sign": jnp.sign,
    "rectified by where": lambda h: jnp.where(h > 0, h, 0.0),
    "maximum": lambda h: jnp.maximum(h, 0.0),
    "leaky relu": jax.nn.leaky_relu,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jumps_and_slopes_at_zero(name: str) -> None:
    f = FUNCTIONS[name]

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x) + nn.constant((nn.width(),), 0.0, name="bias")
        return nn.dense(f(h), features=1)

    z = jnp.asarray(GRID) * jnp.sqrt(jnp.sum(X[1] ** 2) / 3)
    value, slope = float(f(jnp.zeros(()))), float(jax.grad(lambda h: f(h) * 1.0)(0.0))
    mean, mean_slope = (float(WEIGHTS @ np.asarray(g(z))) for g in (f, jax.vmap(jax.grad(lambda h: f(h) * 1.0))))
    k = uncompiled(tp.compile(net, X[0]), X)
    row = np.array([value * value, value * mean])
    np.testing.assert_allclose(np.asarray(k.nngp)[0], row, atol=1e-7)
    np.testing.assert_allclose(np.asarray(k.ntk)[0], np.add(row, [slope * slope, slope * mean_slope]), atol=1e-7)
