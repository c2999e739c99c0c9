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
