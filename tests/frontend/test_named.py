"""Functions of JAX's own that are written on bits, or in counts of conditions: beside comparisons, and beside what JAX computes.

The second witness is a quadrature of JAX's own function and of its `jax.grad`, in panels between its kinks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

Function = Callable[[jax.Array], jax.Array]
X = np.random.default_rng(5).standard_normal((2, 3))
KINKS = (-1.0, 0.0, 1.0)

CASES: dict[str, tuple[Function, Function]] = {
    "piecewise": (
        lambda h: jnp.piecewise(h, [h < 0, h > 1], [lambda h: -h, lambda h: h**2, lambda h: h / 2]),
        lambda h: jnp.where(h > 1, h**2, jnp.where(h < 0, -h, h / 2)),
    ),
    "two pieces": (
        lambda h: jnp.piecewise(h, [h < 0], [lambda h: -h, lambda h: h / 2]),
        lambda h: jnp.where(h < 0, -h, h / 2),
    ),
    "conditions that overlap, numbers": (
        lambda h: jnp.piecewise(h, [h < 1, h < 0], [lambda h: h, 0.5]),
        lambda h: jnp.where(h < 0, 0.5, jnp.where(h < 1, h, 0.0)),
    ),
    "copysign": (lambda h: jnp.copysign(h**2, h), lambda h: h * jnp.abs(h)),
    "signbit": (lambda h: jnp.where(jnp.signbit(h), 0.1, 2.0) * h, lambda h: jnp.where(h < 0, 0.1 * h, 2 * h)),
    "ldexp": (lambda h: jnp.ldexp(h, 2) + jnp.ldexp(h**2, -1), lambda h: 4 * h + h**2 / 2),
}  # fmt: skip


def kernels(function: Function, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return uncompiled(tp.compile(lambda x: nn.dense(function(nn.dense(x)), features=1), x[0]), x)


@pytest.mark.parametrize("name", everyday(CASES, ["conditions that overlap, numbers"], ["piecewise"]))
def test_written_otherwise(name: str) -> None:
    for a, b in zip(*(kernels(f, X) for f in CASES[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("name", everyday(CASES, ["conditions that overlap, numbers"], ["piecewise"]))
def test_what_jax_computes(name: str) -> None:
    function, variance = CASES[name][0], (X[0] ** 2).mean()
    ends = np.array([-12.0 * variance**0.5, *KINKS, 12.0 * variance**0.5])
    nodes, weights = np.polynomial.legendre.leggauss(120)
    half = np.diff(ends) / 2
    z = ((ends[1:] + ends[:-1])[:, None] / 2 + half[:, None] * nodes).ravel()
    density = (half[:, None] * weights).ravel() * np.exp(-(z**2) / 2 / variance) / np.sqrt(2 * np.pi * variance)
    second = density @ np.asarray(function(jnp.asarray(z))) ** 2
    slopes = density @ np.asarray(jax.vmap(jax.grad(lambda u: function(u[None])[0]))(jnp.asarray(z))) ** 2
    nngp, ntk = kernels(function, X[:1])
    np.testing.assert_allclose(nngp[0, 0], second, rtol=1e-10)
    np.testing.assert_allclose(ntk[0, 0], second + variance * slopes, rtol=1e-10)


def test_conditions_of_two_vectors() -> None:
    """The functions that are not chosen have no part, as in JAX."""

    def net(x: jax.Array, piecewise: bool) -> jax.Array:
        h, g = nn.dense(x), nn.dense(x)
        made = jnp.piecewise(h, [h < 0, g > 1], [lambda a: -a, lambda a: a**2]) if piecewise else None
        return nn.dense(jnp.where(g > 1, h**2, jnp.where(h < 0, -h, 0.0)) if made is None else made, features=1)

    one, other = (uncompiled(tp.compile(lambda x, p=p: net(x, p), X[0]), X) for p in (True, False))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
