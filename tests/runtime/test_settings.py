"""Settings of JAX's that a user makes for code of one's own, and that kernels do not mind."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

X = np.random.default_rng(0).standard_normal((3, 6))


def net(x: jax.Array) -> jax.Array:
    return nn.dense(jnp.arctan(nn.dense(x, bias_var=0.1)), features=1)


@pytest.fixture
def ranks_kept_apart() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.long
def test_arrays_of_different_ranks(ranks_kept_apart: None) -> None:
    with pytest.raises(ValueError, match="rank"):
        _ = jnp.ones((2, 3)) + jnp.ones(3)
    kernel = tp.compile(net, jnp.zeros(6))
    found, x = kernel(X), jnp.asarray(X)
    traced = jax.jit(lambda x: kernel(x).ntk)(x)
    np.testing.assert_allclose(traced, found.ntk, rtol=1e-12)
    joint = tp.joint(lambda x: (net(x), net(x)), jnp.zeros(6))
    np.testing.assert_allclose(joint(X).ntk[0][0], found.ntk, rtol=1e-12)
    joint.mean(X), kernel.diag(X)


@pytest.mark.slow
def test_slopes(ranks_kept_apart: None) -> None:
    kernel, x = tp.compile(net, jnp.zeros(6)), jnp.asarray(X)
    slopes = jax.grad(lambda x: kernel(x).nngp.sum())(x)
    step = jnp.zeros_like(x).at[1, 2].set(1e-5)
    moved = (kernel(x + step).nngp.sum() - kernel(x - step).nngp.sum()) / 2e-5
    np.testing.assert_allclose(slopes[1, 2], moved, rtol=1e-6)  # the step's square


def test_the_networks_own_code_is_held_to_it(ranks_kept_apart: None) -> None:
    with pytest.raises(ValueError, match="rank"):
        tp.compile(lambda x: net(x + jnp.ones((1, 6))[:, 0]), jnp.zeros((2, 6)))
