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
from jax.ad_checkpoint import checkpoint_name

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


def shared(h: jax.Array) -> jax.Array:
    return h + jax.nn.relu(nn.dense(h, bias_var=0.1))


def round_of_scan(h: jax.Array, _: None) -> tuple[jax.Array, None]:  # one object, which JAX knows again
    return shared(h), None


def round_of_loop(_: int, h: jax.Array) -> jax.Array:
    return shared(h)


TWICE: dict[str, Net] = {
    "jit": jax.jit(shared),
    "inline": jax.jit(shared, inline=True),
    "checkpoint": jax.checkpoint(shared),
    "both": jax.jit(jax.checkpoint(shared)),
    "inside": jax.jit(lambda h: jax.jit(shared)(h)),
    "scan": lambda h: lax.scan(round_of_scan, h, None, 1)[0],
    "fori_loop": lambda h: lax.fori_loop(0, 1, round_of_loop, h),
    "map": lambda h: lax.map(shared, h[None])[0],
    "vmap": lambda h: jax.vmap(shared)(h[None])[0],
    "cond": lambda h: lax.cond(True, shared, lambda c: c, h),
}


@pytest.mark.parametrize("part", TWICE)
def test_a_part_that_is_called_twice_is_two_layers(part: str) -> None:
    """As it is where nothing is compiled: a name, and a parameter, for every call."""

    def of(block: Net) -> Net:
        return lambda x: nn.dense(block(block(nn.dense(x))), features=1)

    found, right = (of(block) for block in (TWICE[part], shared))
    made = [tp.init(f, jnp.zeros(4), 8, jax.random.key(0)) for f in (found, right)]
    assert {name: a.shape for name, a in made[0].items()} == {name: a.shape for name, a in made[1].items()}
    np.testing.assert_allclose(values(found, made[0]), values(right, made[0]), rtol=1e-5)
    kernels = [tp.compile(f, jnp.zeros(4))(INPUTS) for f in (found, right)]
    for name in ("nngp", "ntk"):
        np.testing.assert_allclose(getattr(kernels[0], name), getattr(kernels[1], name), rtol=1e-5)


def test_a_name_that_is_given_twice_is_refused() -> None:
    block = jax.jit(lambda h: jax.nn.relu(nn.dense(h, name="mine")))
    with pytest.raises(tp.NetworkError, match="two parameters are named 'mine"):
        tp.compile(lambda x: nn.dense(block(block(nn.dense(x))), features=1), jnp.zeros(4))


def test_numbers_in_rules_are_refused() -> None:
    """A rule is run when the network is gone: it would have the default."""

    @jax.custom_jvp
    def sign(h: jax.Array) -> jax.Array:
        return jnp.sign(h)

    sign.defjvp(lambda primals, tangents: (sign(primals[0]), tangents[0] * tp.hyper("slope", 1.0)))
    with pytest.raises(tp.NetworkError, match="'slope' is asked for where it would be its default"):
        tp.compile(lambda x: nn.dense(sign(nn.dense(x)), features=1), jnp.zeros(4))


def test_numbers_in_plain_networks_are_refused() -> None:
    net = tp.Network(
        lambda n: {"v": tp.Gaussian((n,)), "w": tp.Gaussian((n, 4))},
        lambda p, x: tp.hyper("s", 1.0) * (p["v"] @ jax.nn.relu(p["w"] @ x)) / jnp.sqrt(p["v"].size),
    )
    with pytest.raises(tp.NetworkError, match="'s' is asked for where it would be its default"):
        tp.compile(net, jnp.zeros(4))
    with pytest.raises(tp.InputError, match="unknown hyperparameter 's', expected none"):
        tp.apply(net, tp.init(net, jnp.zeros(4), 8, jax.random.key(0)), jnp.ones(4), s=2.0)


def test_unknown_numbers_are_refused() -> None:
    params = tp.init(net, jnp.zeros(4), 8, jax.random.key(0))
    with pytest.raises(tp.InputError, match="unknown hyperparameter 'scales', expected 'scale'"):
        tp.apply(net, params, jnp.ones(4), scales=2.0)


def test_a_network_that_catches_errors_catches_none_of_ours() -> None:
    block = jax.jit(lambda h: jax.nn.relu(nn.dense(h)))

    def careful(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        try:
            h = block(h)
        except Exception:
            h = jnp.tanh(h)
        return nn.dense(h, features=1)

    found = tp.compile(careful, jnp.zeros(4))(INPUTS).nngp
    right = tp.compile(lambda x: nn.dense(block(nn.dense(x)), features=1), jnp.zeros(4))(INPUTS).nngp
    np.testing.assert_allclose(found, right, rtol=1e-6)


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


IDENTITIES: dict[str, Net] = {
    "checkpoint_name": lambda h: checkpoint_name(h, "kept"),
    "optimization_barrier": lax.optimization_barrier,
    "sharding": lambda h: lax.with_sharding_constraint(h, jax.sharding.SingleDeviceSharding(jax.devices()[0])),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_is_said_of_values_changes_none(name: str) -> None:
    plain = lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1)
    said = lambda x: nn.dense(IDENTITIES[name](jax.nn.relu(nn.dense(x))), features=1)
    found, right = (tp.compile(f, jnp.zeros(4))(INPUTS) for f in (said, plain))
    np.testing.assert_array_equal(found.ntk, right.ntk)


def test_a_typed_random_key_may_be_a_constant() -> None:
    key = jax.random.key(3)
    signs = jax.random.rademacher(key, (4,)).astype(float)
    found = tp.compile(
        lambda x: nn.dense(jax.nn.relu(nn.dense(x * jax.random.rademacher(key, (4,)))), features=1), jnp.zeros(4)
    )
    right = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x * signs)), features=1), jnp.zeros(4))
    np.testing.assert_allclose(found(INPUTS).nngp, right(INPUTS).nngp, rtol=1e-6)
