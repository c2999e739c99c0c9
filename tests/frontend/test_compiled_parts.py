"""Networks that are compiled, in whole or in part, by `jax.jit` and its like: JAX keeps what it has traced, and with it the width and the
parameters of that time. Every run has its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import apps, nn

Net = Callable[[jax.Array], jax.Array]
INPUTS = jax.random.normal(jax.random.key(0), (3, 4))


def net(x: jax.Array) -> jax.Array:
    h = nn.dense(x, bias_var=0.1)
    return nn.dense(jax.nn.relu(h) * tp.hyper("scale", 1.0), features=1)


@jax.jit
def hidden(x: jax.Array) -> jax.Array:
    return jax.nn.relu(nn.dense(x, bias_var=0.1))


@jax.jit
def scaled(h: jax.Array) -> jax.Array:
    return h * tp.hyper("scale", 1.0)


@jax.jit
def over_root_width(h: jax.Array) -> jax.Array:
    return h / jnp.sqrt(nn.width())


def step(h: jax.Array, _: None) -> tuple[jax.Array, None]:
    return scaled(jax.nn.relu(nn.dense(h, bias_var=0.1))), None


NETS: dict[str, tuple[Net, Net]] = {
    "whole": (jax.jit(net), net),
    "a part": (lambda x: nn.dense(scaled(hidden(x)), features=1), net),
    "kept for the derivative only": (jax.checkpoint(net), net),
    "a number": (lambda x: nn.dense(scaled(jax.nn.relu(nn.dense(x, bias_var=0.1))), features=1), net),
    "the width": (lambda x: nn.weight((1, nn.width())) @ over_root_width(scaled(hidden(x))), net),
    "a loop": (lambda x: nn.dense(lax.scan(step, jnp.zeros(nn.width()) + nn.dense(x), None, 1)[0], features=1), net),
}


@pytest.fixture(params=NETS)
def pair(request: pytest.FixtureRequest) -> tuple[Net, Net]:
    return NETS[request.param]


def test_its_kernel_is_that_of_the_network(pair: tuple[Net, Net]) -> None:
    compiled, plain = pair
    if compiled is NETS["a loop"][0]:
        plain = lambda x: nn.dense(step(nn.dense(x), None)[0], features=1)
    for scale in (1.0, 1.5):
        found, right = (tp.compile(f, jnp.zeros(4))(INPUTS, scale=scale) for f in (compiled, plain))
        np.testing.assert_allclose(found.nngp, right.nngp, rtol=1e-6)
        np.testing.assert_allclose(found.ntk, right.ntk, rtol=1e-6)


def test_a_number_seen_before_is_an_argument_in_the_network() -> None:
    """Outside of any network a hyperparameter is its default, which JAX keeps too."""

    @jax.jit
    def times(h: jax.Array) -> jax.Array:
        return h * tp.hyper("scale", 3.0)

    f = lambda x: nn.dense(times(nn.dense(x)), features=1)
    assert float(times(jnp.ones(8))[0]) == 3  # of the shape and dtype that it has in the network, at width 8
    params = tp.init(f, jnp.zeros(4), 8, jax.random.key(0))
    first = tp.apply(f, params, INPUTS[0], scale=1.0)
    np.testing.assert_allclose(tp.apply(f, params, INPUTS[0], scale=2.0), 2 * first, rtol=1e-6)
    kernel = tp.compile(f, jnp.zeros(4))
    np.testing.assert_allclose(kernel(INPUTS, scale=2.0).nngp, 4 * kernel(INPUTS, scale=1.0).nngp, rtol=1e-6)
    assert float(times(jnp.ones(8))[0]) == 3


def values(f: Net, params: Any, **hypers: float) -> jax.Array:
    return jax.vmap(lambda one: tp.apply(f, params, one, **hypers))(INPUTS)


def test_every_run_has_its_parameters(pair: tuple[Net, Net]) -> None:
    """Other parameters, another width, another hyperparameter: nothing is left of the run before."""
    f, _ = pair
    known = []
    for width, seed, scale in ((8, 0, 1.0), (8, 1, 1.0), (8, 1, 2.0), (16, 0, 1.0), (8, 0, 1.0)):
        params = tp.init(f, jnp.zeros(4), width, jax.random.key(seed))
        assert {a.shape for a in params.values()} >= {(width, 4), (1, width)}
        known.append(values(f, params, scale=scale))
        np.testing.assert_allclose(jax.jit(lambda p, f=f, s=scale: values(f, p, scale=s))(params), known[-1], rtol=1e-5)
    np.testing.assert_array_equal(known[0], known[-1])
    for k in range(1, 4):
        assert float(jnp.abs(known[k] - known[k - 1]).max()) > 1e-3
    np.testing.assert_allclose(known[2], known[1] * 2, rtol=1e-5)


def test_gradients_are_of_the_parameters(pair: tuple[Net, Net]) -> None:
    f, _ = pair
    params = tp.init(f, jnp.zeros(4), 8, jax.random.key(0))
    slopes = jax.grad(lambda p: values(f, p).sum())(params)
    step = 1e-3
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, float), params)
        moved = [jax.tree.map(lambda a, g, s=s: a + s * step * g, wide, slopes) for s in (1, -1)]
        change = (values(f, moved[0]).sum() - values(f, moved[1]).sum()) / (2 * step)
    size = sum(float((g**2).sum()) for g in slopes.values())
    assert size > 0.1
    assert abs(float(change) - size) < 1e-3 * size  # a kink may lie between


def test_sampled_networks_agree_with_the_limit() -> None:
    kernel = tp.compile(NETS["a part"][0], jnp.zeros(4))
    found = apps.monte_carlo(NETS["a part"][0], INPUTS, 256, 64, jax.random.key(0))
    right = kernel(INPUTS)
    assert np.all(np.abs(found.mean.nngp - right.nngp) < 5 * found.error.nngp + 0.02)
    assert np.all(np.abs(found.mean.ntk - right.ntk) < 5 * found.error.ntk + 0.02)
