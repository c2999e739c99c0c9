"""The modulus of a hidden vector above or below a number that is not known: beside the same with the number in its place, of both signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

X = np.random.default_rng(8).standard_normal((2, 3))
Function = Callable[[jax.Array, Any], jax.Array]

CASES: dict[str, Function] = {
    "soft threshold": lambda h, s: jnp.sign(h) * jnp.maximum(jnp.abs(h) - s, 0),
    "by relu, the factors exchanged": lambda h, s: jax.nn.relu(jnp.abs(h) - s) * jnp.sign(h),
    "above": lambda h, s: jnp.maximum(jnp.abs(h), s),
    "below": lambda h, s: jnp.minimum(2 * jnp.abs(h) + 0.1, s),
    "turned": lambda h, s: jnp.maximum(s - jnp.abs(h), 0.25),
    "turned below": lambda h, s: jnp.minimum(s - 2 * jnp.abs(h), 0.25),
}
SLOW = ["above", "below", "turned", "turned below"]


def network(function: Function, s: Callable[[], Any]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: nn.dense(function(nn.dense(x), s()), features=1)


@pytest.mark.parametrize("name", everyday(CASES, SLOW, ["soft threshold", "by relu, the factors exchanged"]))
def test_the_number_in_its_place(name: str) -> None:
    kernel = tp.compile(network(CASES[name], lambda: tp.hyper("s", 0.5)), X[0])
    for s in (0.5, -0.4):
        found = uncompiled(kernel, X, s=s)
        wanted = uncompiled(tp.compile(network(CASES[name], lambda s=s: s), X[0]), X)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_in_closed_form() -> None:
    """E f^2 = 2 ((q + s^2) P(z > s) - s q p(s)) of the soft threshold, z of the variance q and the density p; of its slope 2 P(z > s)."""
    q = np.diag(X @ X.T) / 3
    found = uncompiled(tp.compile(network(CASES["soft threshold"], lambda: tp.hyper("s", 0.7)), X[0]), X)
    tail, density = norm.sf(0.7, scale=q**0.5), norm.pdf(0.7, scale=q**0.5)
    second = 2 * ((q + 0.49) * tail - 0.7 * q * density)
    np.testing.assert_allclose(np.diag(found.nngp), second, rtol=1e-10)
    np.testing.assert_allclose(np.diag(found.ntk), second + 2 * q * tail, rtol=1e-10)


def test_a_threshold_of_the_input() -> None:
    """A threshold that each input has of its own."""
    soft = CASES["soft threshold"]
    kernel = tp.compile(lambda x: nn.dense(soft(nn.dense(x), x[0]), features=1), X[0])
    at = [uncompiled(tp.compile(network(soft, lambda s=s: s), X[0]), X) for s in X[:, 0]]
    np.testing.assert_allclose(np.diag(uncompiled(kernel, X).ntk), [k.ntk[i, i] for i, k in enumerate(at)], rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("s", [0.5, -0.4])
def test_a_choice_between_two_vectors(s: float) -> None:
    """Where the first vector cannot move, at an input of zeros, it is chosen by the number alone; its other half has a bias."""
    x = np.concatenate([X, np.zeros((1, 3))])

    def choice(s: Callable[[], Any]) -> Callable[[jax.Array], jax.Array]:
        def net(x: jax.Array) -> jax.Array:
            h, g = nn.dense(x), nn.dense(x, bias_var=0.2)
            return nn.dense(jnp.where(h > s(), h, g), features=1)

        return net

    found = uncompiled(tp.compile(choice(lambda: tp.hyper("s", 0.1)), X[0]), x, s=s)
    wanted = uncompiled(tp.compile(choice(lambda: s), X[0]), x)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())
