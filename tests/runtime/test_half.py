"""Kernels of half precision are those of float32, rounded: every layer would lose more of the little that it has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn


def net(x: jax.Array) -> jax.Array:
    h = x
    for _ in range(3):
        h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=0.1))
    return nn.dense(h, features=1)


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    return tp.compile(net, jnp.zeros(5))


def inputs(dtype: str) -> jax.Array:
    """Pairs of near inputs among them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 5))
    x[1::2] = x[::2] + 0.01 * rng.standard_normal((6, 5))
    return jnp.asarray(x, dtype)


def same(found: object, expected: object, dtype: str) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b.astype(dtype), np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_rounded(kernel: tp.Kernel, dtype: str) -> None:
    x = inputs(dtype)
    wide = x.astype(jnp.float32)
    same(kernel(x), kernel(wide), dtype)
    assert kernel(x, wide).ntk.dtype == jnp.float32


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_rounded_in_other_calls(kernel: tp.Kernel, dtype: str) -> None:
    x = inputs(dtype)
    wide = x.astype(jnp.float32)
    same(kernel(x[:3], x), kernel(wide[:3], wide), dtype)
    same(kernel.diag(x), kernel.diag(wide), dtype)
    same(jax.jit(lambda x: kernel(x))(x), jax.jit(lambda x: kernel(x))(wide), dtype)


@pytest.mark.long
def test_of_several_outputs() -> None:
    """by_parameter goes the same way."""
    joint = tp.joint(lambda x: (net(x), jnp.mean(jnp.tanh(nn.dense(x)))), jnp.zeros(5))
    x = inputs("bfloat16")
    wide = x.astype(jnp.float32)
    same(joint(x), joint(wide), "bfloat16")
    same(joint.diag(x), joint.diag(wide), "bfloat16")
    same(joint.mean(x), joint.mean(wide), "bfloat16")


def test_what_half_precision_cannot_hold_is_infinite(kernel: tp.Kernel) -> None:
    found = kernel(3e3 * inputs("float16"))
    assert np.isinf(np.diag(found.nngp)).all()
    assert not any(np.isnan(k).any() for k in found)
