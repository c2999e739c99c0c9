"""Every stage before the limit, at finite width and without sampling error: the same weights, the same number."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import Moment, Program, parse_program, verify
from tensorprog.passes import simplify
from tensorprog.passes.fuse import fuse
from tensorprog.passes.tangent import tangent
from tests.finite_program import at_once, directional_derivative, evaluate, network_program, sampled_network
from tests.networks import NETWORKS, POSITIONS, an_input, readout

pytestmark = pytest.mark.slow

WIDTH = 8


def close(found: jax.Array, wanted: jax.Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * max(1e-3, float(np.abs(wanted).max())))


def check(net: object, example: np.ndarray) -> Program:
    """The program is the network; each pass keeps its value; the tangent program is its derivative."""
    params, weights = sampled_network(net, jnp.zeros(example.shape), WIDTH)
    program = verify(network_program(net, jnp.zeros(example.shape)))
    assert parse_program(str(program)) == program
    run = lambda program, weights: at_once(lambda w: evaluate(program, w, [example]), weights)
    value = run(program, weights.sample([program]))
    close(value, jax.jit(lambda p, x: tp.apply(net, p, x))(params, jnp.asarray(example)))
    fused = verify(fuse(program))
    close(run(fused, weights), value)
    close(run(verify(fuse(program, drop_zeros=True)), weights), value)
    moved = tangent(fused)  # of the fused program, where a condition stands inside the function that it chooses for
    assert moved is not None
    weights.sample([verify(moved)])
    slope = at_once(lambda w: directional_derivative(program, w, [example]), weights)
    close(run(moved, weights), slope)
    close(run(verify(fuse(moved, drop_zeros=True)), weights), slope)
    return program


@pytest.fixture(autouse=True)
def _without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mean_of_gaussian` holds in the limit alone (E g = 0), so it stands aside here; it has a test of its own."""
    monkeypatch.setattr(simplify, "RULES", tuple(r for r in simplify.RULES if r is not simplify.mean_of_gaussian))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    check(NETWORKS[name][0], an_input(name))


def test_the_plain_form_with_constants() -> None:
    net = tp.Network(
        init=lambda n: {
            "W": tp.Gaussian((n, 3), std=1.5),
            "g": tp.Constant((n,), 2.0),
            "v": tp.Gaussian((n,), std=n**-0.5),
        },
        apply=lambda p, x: p["v"] @ (p["g"] * jnp.tanh(p["W"] @ x)),
    )
    check(net, np.array([0.3, -1.0, 2.0]))


STEPS = {
    **{
        f"map {name}": op
        for name, op in POSITIONS.items()
        if name in ("reverse", "matrix", "roll", "cumsum", "weights", "mask")
    },
    "dense": lambda h: nn.dense(h, bias_var=0.2),
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "residual": lambda h: h + jnp.sin(nn.dense(h)),
    "product": lambda h: h * jax.nn.sigmoid(nn.dense(h)),
    "norm": nn.layer_norm,
    "twice": lambda h: h + h,
    "affine": lambda h: 2 * h - 0.5,
    "half": lambda h: jnp.concatenate([h, nn.dense(h, width=0.5)], -1)[:, : h.shape[1]],
    "overlaps": lambda h: jax.nn.softmax(h @ h.T / h.shape[-1], -1) @ h,
    "pooled": lambda h: nn.avg_pool(h, 2, strides=1, padding="CIRCULAR"),
    "conv": lambda h: nn.conv(h, 3),
}


@hypothesis.given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_random_networks(steps: list[str]) -> None:
    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        for step in steps:
            h = STEPS[step](h)
        return readout(h)

    check(net, np.random.default_rng(3).standard_normal((4, 3)))


def test_a_moment_is_a_mean_over_its_own_width() -> None:
    """A wrong weighting of blocks of unequal width would change this."""
    net = lambda x: readout(
        nn.dense(x) * jnp.mean(jnp.square(jnp.concatenate([nn.dense(x), nn.dense(3 * x, width=0.5)])))
    )
    program = check(net, np.array([1.0, 2.0]))
    assert sum(isinstance(node, Moment) for node in program) == 2
