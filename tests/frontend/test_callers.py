"""Layers inside of functions of JAX that call what they are given more than once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

X = np.random.default_rng(0).standard_normal((2, 3, 3))


def mapped(batch_size: int | None, weight_before: bool = False) -> Any:
    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((nn.width(), 3)) if weight_before else None
        layer = (lambda row: nn.dense(row)) if w is None else (lambda row: w @ row / np.sqrt(3))
        h = jax.lax.map(lambda row: jax.nn.relu(layer(row)), x, batch_size=batch_size)
        return nn.dense(h.mean(0), features=1)

    return net


@pytest.mark.parametrize("batch_size", [1, 3])
def test_whole_batches_are_one_call(batch_size: int) -> None:
    found, right = (tp.compile(mapped(size), X[0])(X) for size in (batch_size, None))
    np.testing.assert_allclose(found.ntk, right.ntk, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_rest_would_have_weights_of_its_own(batch_size: int) -> None:
    """The kernel was that of two layers, one for the last rows."""
    message = rf"batch_size={batch_size}, of 3 calls more than once(?s:.*)a batch_size that divides 3"
    with pytest.raises(tp.NetworkError, match=message):
        tp.compile(mapped(batch_size), X[0])
    found, right = (tp.compile(mapped(size, weight_before=True), X[0])(X) for size in (batch_size, None))
    np.testing.assert_allclose(found.ntk, right.ntk, rtol=1e-12)


def test_scans_over_a_tree() -> None:
    def net(x: jax.Array) -> jax.Array:
        return nn.dense(jax.lax.associative_scan(lambda a, b: a + nn.dense(b, 3), x).mean(0), features=1)

    with pytest.raises(tp.NetworkError, match="associative_scan calls more than once"):
        tp.compile(net, X[0])


def test_what_calls_the_network_may_call_it_as_often_as_it_likes() -> None:
    net = lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1)
    rows = X.reshape(-1, 3)[:5]
    params = tp.init(net, rows[0], 8, jax.random.key(0))
    apply = lambda x: tp.apply(net, params, x)
    np.testing.assert_allclose(jax.lax.map(apply, rows, batch_size=2), jax.vmap(apply)(rows), rtol=1e-12)
