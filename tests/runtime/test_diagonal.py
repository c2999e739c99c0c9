"""Many inputs with themselves: in batches where one input needs much memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import kernel as module


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(x: jax.Array) -> jax.Array:
        return nn.dense(jax.nn.relu(nn.dense(x)), features=1)

    x = np.random.default_rng(0).standard_normal((5, 3))
    whole = tp.compile(net, x[0]).diag(x)
    seen = []

    def two(size: int) -> int:
        seen.append(size)
        return 2

    monkeypatch.setattr(module, "pairs_in_memory", two)
    parts, joint = tp.compile(net, x[0]).diag(x), tp.joint(net, x[0]).diag(x)
    assert seen
    for k, part, other in zip(whole, parts, joint, strict=True):
        np.testing.assert_allclose(part, k, rtol=1e-15)
        np.testing.assert_allclose(jnp.ravel(jax.tree.leaves(other)[0]), k, rtol=1e-14)


def test_what_is_asked_for() -> None:
    def net(x: jax.Array) -> jax.Array:
        return nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.0))), features=1)

    x = np.random.default_rng(0).standard_normal((3, 2))
    for kernel in (tp.compile(net, x[0]), tp.joint(net, x[0])):
        both = kernel.diag(x, w=2.0)
        np.testing.assert_array_equal(kernel.diag(x, get="ntk", w=2.0), both.ntk)
        first, second = kernel.diag(x, get=("ntk", "nngp"), w=2.0)
        np.testing.assert_array_equal(first, both.ntk)
        np.testing.assert_allclose(second, both.nngp, rtol=1e-15)
        with pytest.raises(tp.InputError, match="get"):
            kernel.diag(x, get="kernel")
