"""Networks that round to whole numbers: one function written two ways, tangent and adjoint program, transposes, sampled networks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

X = np.array([[0.3, -1.2, 0.5], [0.7, 0.2, 1.9], [0.0, 0.0, 0.0]])


def kernels(phi: Callable, method: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    net = lambda x: nn.dense(phi(nn.dense(x, weight_var=1.5)), features=1)
    return uncompiled(tp.compile(net, jnp.zeros(3), method=method), X)


straight_through = jax.custom_jvp(lambda h: jnp.round(h))
straight_through.defjvp(lambda h, t: (jnp.round(h[0]), t[0]))

EQUAL: dict[str, tuple[Callable, Callable]] = {
    "ceil": (jnp.ceil, lambda h: -jnp.floor(-h)),
    "whole numbers": (lambda h: h.astype(int) * 1.0, jnp.trunc),
    "quotient of whole numbers": (lambda h: (4 * h).astype(int) // 2 * 1.0, lambda h: jnp.floor(jnp.trunc(4 * h) / 2)),
    "remainder": (lambda h: h % 0.75, lambda h: h - 0.75 * jnp.floor(h / 0.75)),
    "fmod": (lambda h: jnp.fmod(h, 1.5), lambda h: jnp.sign(h) * (jnp.abs(h) % 1.5)),
    "quotient": (lambda h: h // 0.5, lambda h: jnp.floor(2 * h)),
    "straight through": (straight_through, lambda h: h + jax.lax.stop_gradient(jnp.round(h) - h)),
    "angle": (lambda h: jnp.arctan2(jnp.ones_like(h), h), lambda h: jnp.pi / 2 - jnp.arctan(h)),
}


LONG = {"straight through", "whole numbers", "remainder"}


@pytest.mark.parametrize("name", everyday(EQUAL, EQUAL.keys() - LONG, LONG))
def test_equal_functions_have_equal_kernels(name: str) -> None:
    for a, b in zip(*map(kernels, EQUAL[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.long
def test_slopes() -> None:
    """None of floor, one of a remainder: then NTK = NNGP, or NNGP + Cov(h, h')."""
    nngp, ntk = kernels(jnp.floor)
    np.testing.assert_allclose(ntk, nngp, rtol=1e-13)
    nngp, ntk = kernels(lambda h: h % 1.0)
    np.testing.assert_allclose(ntk - nngp, 1.5 * X @ X.T / 3, atol=1e-12)


def tied(x: jax.Array) -> jax.Array:
    n = nn.width()
    w = nn.weight((n, n)) / jnp.sqrt(n)
    return nn.dense(w.T @ jnp.round(w @ nn.dense(x, weight_var=1.5)), features=1)


def test_between_a_weight_and_its_transpose() -> None:
    """W^T round(W h) = Zhat + c h with c = E[u round(u)] / E[u^2], the form without derivatives: Var = E[round^2] + c^2 E[h^2]."""
    x, jumps = X[:2], np.arange(-40, 40) + 0.5
    one, other = (uncompiled(tp.compile(tied, jnp.zeros(3), method=method), x) for method in ("tangent", "adjoint"))
    for i, q in enumerate(1.5 * np.sum(x * x, 1) / 3):
        c = np.sum(np.exp(-(jumps**2) / (2 * q)) / np.sqrt(2 * np.pi * q))  # by Stein's lemma
        tails = scipy.special.ndtr(-np.abs(jumps) / np.sqrt(q))
        second = np.sum((2 * np.abs(jumps)) * tails)  # of k^2, which grows by 2 |k - 1/2| at each jump
        np.testing.assert_allclose(one.nngp[i, i], second + c * c * q, rtol=1e-12)
    np.testing.assert_allclose(one.ntk, other.ntk, rtol=1e-12)


def test_beyond_the_jumps_that_are_known() -> None:
    kernel = tp.compile(lambda x: nn.dense(jnp.floor(nn.dense(x)), features=1), jnp.zeros(3))
    with pytest.raises(tp.InputError, match=r"a variance of .*expected at most 1\d\d"):
        kernel(100 * X[:2])
    assert np.isnan(jax.jit(lambda x: kernel(x).nngp)(100 * X[:2])).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "net", [tied, lambda x: nn.dense(jnp.floor(nn.dense(nn.dense(x) % 1.0)), features=1)], ids=["tied", "two layers"]
)
def test_sampled_networks_approach(net: Callable) -> None:
    x, draws = X[:2], 400
    k = tp.compile(net, jnp.zeros(3))(x)

    def offset(width: int) -> tuple[np.ndarray, np.ndarray]:
        def one(key: jax.Array) -> jax.Array:
            params = tp.init(net, x[0], width, key)
            slopes = [jax.grad(lambda p, y=y: tp.apply(net, p, y)[0])(params) for y in x]
            flat = jnp.stack([jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(s)]) for s in slopes])
            return flat @ flat.T

        found = np.asarray(jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(0), draws)))
        return (found.mean(0) - k.ntk) / (found.std(0) / np.sqrt(draws)), found.mean(0) / k.ntk - 1

    for width in (128, 512):
        errors, relative = offset(width)
        assert np.all(np.abs(errors) < 4) or np.all(np.abs(relative) < 6 / width), (width, errors, relative)
