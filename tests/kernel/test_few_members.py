"""Norms of two members: what a small epsilon lets through is less than the rounding of what the members' distance is the difference of."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

EPSILON = 1e-6


def net(x: jax.Array) -> jax.Array:
    h = nn.conv(x, 3)
    mean = h.mean(0, keepdims=True)
    variance = jnp.square(h - mean).mean(0, keepdims=True)
    return nn.dense(jax.nn.relu((h - mean) / jnp.sqrt(variance + EPSILON)).mean(0), features=1)


def by_hand(x: np.ndarray) -> tuple[float, float]:
    """With d half the distance of the two members, the output reads |d| / (2 sqrt(d^2 + epsilon)); its slope in d is
    epsilon / (2 (d^2 + epsilon)^(3/2))."""
    padded = np.zeros((4, x.shape[1]))
    padded[1:3] = x
    patches = np.stack([padded[s : s + 3].ravel() for s in range(2)])
    k = patches @ patches.T / patches.shape[1]
    size = mpmath.mpf(float(k[0, 0] + k[1, 1] - 2 * k[0, 1]) / 4)
    density = lambda d: mpmath.exp(-d * d / (2 * size)) * mpmath.sqrt(2 / (mpmath.pi * size))
    ends = [0, 1e-4, 1e-3, 1e-2, 0.1, 1, 10]
    nngp = mpmath.quad(lambda d: density(d) * d * d / (d * d + EPSILON), ends) / 4
    slope = mpmath.quad(lambda d: density(d) * EPSILON**2 / (d * d + EPSILON) ** 3, ends) / 4
    return float(nngp), float(nngp + size * slope)


@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_instance_norm_of_two_positions(dtype: type, error: float) -> None:
    """They were 1e-6 and, in float32, 3e-2 off: a correlation of -1 within a part in 1e9 is an angle of a part in 1e5."""
    x = np.random.default_rng(0).standard_normal((3, 2, 2)).astype(dtype)
    found = tp.compile(net, jnp.zeros((2, 2)))(x)
    for i, one in enumerate(x.astype(np.float64)):
        nngp, ntk = by_hand(one)
        np.testing.assert_allclose((found.nngp[i, i], found.ntk[i, i]), (nngp, ntk), rtol=error)


@pytest.mark.long
def test_float32_is_float64_rounded(tmp_path: Path) -> None:
    """Of a norm without an epsilon float32 alone kept four digits."""

    def of_three(x: jax.Array) -> jax.Array:
        h = nn.dense(x, bias_var=0.1)
        centred = h - h.mean(0, keepdims=True)
        return nn.dense(jax.nn.relu(centred / jnp.sqrt(jnp.square(centred).mean(0, keepdims=True))), features=1)

    x = np.random.default_rng(1).standard_normal((2, 4, 3))
    kernel, several = (
        tp.compile(of_three, jnp.zeros((4, 3))),
        tp.joint(lambda x: {"a": of_three(x)}, jnp.zeros((4, 3))),
    )
    kernel.export(tmp_path / "kernel.zip")
    narrow = x.astype(np.float32)
    wide = kernel(narrow.astype(np.float64))
    joint = several(narrow)
    for found in (
        kernel(narrow),
        tp.load(tmp_path / "kernel.zip")(narrow),
        (joint.nngp["a"]["a"], joint.ntk["a"]["a"]),
    ):
        for mine, other in zip(found, wide, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, other, rtol=2e-7, atol=1e-7)
    for mine, other in zip(kernel.diag(narrow), wide, strict=True):
        np.testing.assert_allclose(mine, other[np.arange(2), np.arange(2)], rtol=2e-7, atol=1e-7)
