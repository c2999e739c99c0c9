"""Loops: the same numbers as the code they replace, and code that does not grow with depth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.kernel.graph import Expect
from tensorprog.lower import lower
from tensorprog.lower.schedule import Loop, schedule
from tensorprog.runtime.kernel import functions


def deep(depth: int) -> Any:
    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x, weight_var=1.5, bias_var=0.1)
        for _ in range(depth - 1):
            h = nn.dense(jax.nn.relu(h), weight_var=1.7, bias_var=0.1)
        return nn.dense(jax.nn.relu(h), features=2)

    return net


def convolutional(x: jax.Array) -> jax.Array:
    for _ in range(6):
        x = jax.nn.relu(nn.conv(x, 3, weight_var=2.0, bias_var=0.1))
    return nn.dense(nn.global_avg_pool(x), features=1)


def residual(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    for _ in range(6):
        h = h + nn.dense(jax.nn.relu(nn.layer_norm(h)))
    return nn.dense(h, features=1)


def recurrent(x: jax.Array) -> jax.Array:
    w, u = nn.weight((nn.width(), nn.width())), nn.weight((nn.width(), 2))
    h = jnp.zeros(nn.width())
    for t in range(6):
        h = jax.nn.relu(w @ h / jnp.sqrt(nn.width()) + u @ x[t])
    return nn.dense(h, features=1)


@pytest.mark.parametrize(
    ("net", "shape", "slopes_too"),
    [
        (deep(6), (5,), False),
        pytest.param(deep(6), (5,), True, marks=pytest.mark.long),
        *(
            pytest.param(*case, True, marks=pytest.mark.slow)
            for case in ((convolutional, (4, 3, 2)), (residual, (5,)), (recurrent, (6, 2)))
        ),
    ],
)
def test_rolled_equals_unrolled(net: Any, shape: tuple[int, ...], slopes_too: bool) -> None:
    kernel = tp.compile(net, jnp.zeros(shape))
    x = [jnp.asarray(np.random.default_rng(0).standard_normal((3, *shape)))]
    found = [
        functions(lower(kernel.graph, kernel.program.inputs, () if r else ("loops",)), kernel.graph)
        for r in (True, False)
    ]
    rolled, plain = (jax.jit(f.block)(x, x, {}) for f in found)
    np.testing.assert_allclose(rolled, plain, rtol=1e-12)
    if not slopes_too:
        return
    slopes = [jax.jit(jax.grad(lambda leaf, f=f: f.block([leaf], x, {})[1].sum()))(x[0]) for f in found]
    np.testing.assert_allclose(*slopes, rtol=1e-9, atol=1e-12)  # sums in another order


@pytest.mark.parametrize("cross", [True, False])
def test_code_does_not_grow_with_depth(cross: bool) -> None:
    sizes = []
    for depth in (10, 20):
        graph = tp.compile(deep(depth), jnp.zeros(5)).graph
        ends = [graph.nngp, graph.ntk] if cross else [graph.nngp_self, graph.ntk_self]
        steps = schedule(ends, cross)
        assert any(isinstance(step, Loop) and len(step.groups) >= depth - 3 for step in steps)
        sizes.append(sum(len(step.reads) if isinstance(step, Loop) else 1 for step in steps))
    assert sizes[0] == sizes[1]


def test_every_quantity_is_scheduled_once() -> None:
    graph = tp.compile(deep(9), jnp.zeros(5)).graph
    steps = schedule([graph.nngp, graph.ntk], True)
    flat = [q for s in steps for q in (sum(s.groups, ()) if isinstance(s, Loop) else (s,))]
    assert len(flat) == len(set(flat)) == sum(getattr(q, "cross", False) for q in graph.nodes)
    assert sum(isinstance(q, Expect) for q in flat) == 2 * 9


@pytest.mark.slow
def test_a_thousand_layers_meet_no_recursion_limit() -> None:
    kernel = tp.compile(deep(1000), jnp.zeros(3))
    assert len(kernel.program) > 3000
    assert "return_" in str(kernel.program)
    found = kernel(jnp.eye(3))
    assert np.isfinite(found.ntk).all()
    np.testing.assert_allclose(np.diag(found.ntk), kernel.diag(jnp.eye(3)).ntk, rtol=1e-12)
