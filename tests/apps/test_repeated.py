"""Repeated blocks found in programs: their maps against the papers' formulas, integrals, the deep kernel, and sampled networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

import tensorprog as tp
from tensorprog import apps, nn
from tests.apps.test_depth import mean

W, B = tp.hyper("w", 2.5), tp.hyper("b", 0.05)


def perceptron(x: jax.Array, depth: int = 5) -> jax.Array:
    for _ in range(depth):
        x = erf(nn.dense(x, weight_var=W, bias_var=B))
    return nn.dense(x, features=1, weight_var=W, bias_var=B)


@cache
def layer() -> apps.Block:
    """The layer of `perceptron` by itself."""
    return apps.Block(lambda h: nn.dense(erf(h), weight_var=W, bias_var=B))


def second_moment(q: float) -> float:
    """E erf(u)^2 at variance q (Williams 1997)."""
    return 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))


def residual(x: jax.Array, depth: int = 4) -> jax.Array:
    """x + V erf(U x + b) + a, as Yang and Schoenholz 2017 have it."""
    h = nn.dense(x)
    for _ in range(depth):
        h = h + nn.dense(erf(nn.dense(h, weight_var=W, bias_var=B)), weight_var=0.8, bias_var=0.3)
    return nn.dense(h, features=1)


@cache
def found(net: Callable, size: int = 3) -> apps.Block:
    return apps.Block(tp.compile(net, jnp.zeros(size)))


@pytest.mark.long
def test_block_of_a_deep_network_is_the_block_by_itself() -> None:
    block = found(perceptron)
    assert block.hypers == {"w": 2.5, "b": 0.05} and repr(block) == "<Block found in a network: b=0.05, w=2.5>"
    for given in ({}, {"w": 1.2, "b": 0.2}):
        assert abs(block.variance(0.8, **given) - layer().variance(0.8, **given)) < 1e-12
        assert abs(block.chi(0.8, 0.3, **given) - layer().chi(0.8, 0.3, **given)) < 1e-12
        assert str(block.phase(**given)) == str(layer().phase(**given))
    assert abs(block.critical("w", (0.5, 4.0), b=0.1) - layer().critical("w", (0.5, 4.0), b=0.1)) < 1e-8


def two_inputs(q: float, c: float, size: int = 3) -> np.ndarray:
    """Inputs whose first layer, of variance sigma^2 |x|^2 / size, has the covariance that is asked for."""
    x = np.zeros((2, size))
    x[0, 0], x[1, 0], x[1, 1] = 1.0, c, np.sqrt(1 - c * c)
    return np.sqrt(size * q) * x


@pytest.mark.parametrize("depth", [3, *(pytest.param(d, marks=pytest.mark.long) for d in (5, 9))])
def test_path_is_the_deep_kernel(depth: int) -> None:
    """A perceptron's readout is one more layer of it; a residual net's hands on the covariance of the last."""
    with jax.enable_x64(True):
        x = two_inputs(0.5, 0.3)
        deep = np.asarray(tp.compile(lambda x: perceptron(x, depth), jnp.zeros(3))(x).nngp)
        first = 2.5 * 0.5 + 0.05
        path = found(perceptron).trajectory((2.5 * 0.15 + 0.05) / first, first, depth)
        np.testing.assert_allclose((path[-1, 0], path[-1].prod()), deep[0], rtol=1e-10)
        deep = np.asarray(tp.compile(lambda x: residual(x, depth), jnp.zeros(3))(x).nngp)
        path = found(residual).trajectory(0.3, 0.5, depth)
        np.testing.assert_allclose((path[-1, 0], path[-1].prod()), deep[0], rtol=1e-10)


def test_residual_networks() -> None:
    """Yang and Schoenholz 2017, the recurrences of full residual networks; expectations of erf by Williams 1997."""
    block, q, c = found(residual), 0.7, 0.4
    v, a, w, b = 0.8, 0.3, 2.5, 0.05
    u = w * q + b
    products = lambda cov: 2 / np.pi * np.arcsin(2 * cov / (1 + 2 * u))
    assert abs(block.variance(q) - (q + v * products(u) + a)) < 1e-12
    covariance = c * q + v * products(w * c * q + b) + a
    assert abs(block.correlation(c, q) * block.variance(q) - covariance) < 1e-12
    slopes = 4 / np.pi / np.sqrt((1 + 2 * u) ** 2 - 4 * u**2)
    assert abs(block.chi(q) - (1 + v * w * slopes)) < 1e-12
    assert block.phase().name == "divergent" and block.fixed_variance() == np.inf  # a sum that grows like the depth


def test_layers_in_turn_norms_and_two_branches() -> None:
    """Blocks of several layers: the maps after one another, and a sum of branches, by formulas of ReLU and of a norm."""

    def in_turn(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jax.nn.relu(nn.dense(erf(nn.dense(x, weight_var=W)), weight_var=1.7))
        return nn.dense(x, features=1)

    q = 0.6  # of what erf reads; the block starts before the other nonlinearity or before this one
    relu, erfs = (lambda v: W.default * v / 2), (lambda v: 1.7 * 2 / np.pi * np.arcsin(2 * v / (1 + 2 * v)))
    assert min(abs(found(in_turn).variance(q) - after) for after in (relu(erfs(q)), erfs(relu(q)))) < 1e-12

    def normed(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        for _ in range(4):
            g = nn.layer_norm(h, epsilon=0.0)
            h = h + nn.dense(jax.nn.relu(nn.dense(g, weight_var=W))) + nn.dense(g, weight_var=0.2)
        return nn.dense(h, features=1)

    block = found(normed)
    assert abs(block.variance(q) - (q + W.default / 2 + 0.2)) < 1e-12
    assert abs(block.chi(q) - (1 + (W.default / 2 + 0.2) / q)) < 1e-12  # the norm divides by sqrt(q)


@pytest.mark.slow
def test_circular_convolutions_are_perceptrons_for_alike_positions() -> None:
    """Xiao et al. 2018, section 2.2: the maps of a convolution in the homogeneous direction."""

    def net(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = erf(nn.conv(x, 3, padding="CIRCULAR", weight_var=W, bias_var=B))
        return nn.dense(nn.global_avg_pool(x), features=1)

    block = apps.Block(net, jnp.zeros((3, 2)))
    assert abs(block.variance(0.8) - layer().variance(0.8)) < 1e-12
    assert abs(block.chi(0.8, 0.3) - layer().chi(0.8, 0.3)) < 1e-12
    assert abs(block.chi(0.8) - layer().chi(0.8)) < 1e-12

    def padded(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = erf(nn.conv(x, 3, weight_var=W))
        return nn.dense(nn.flatten(x), features=1)

    with pytest.raises(tp.InputError, match="positions that were alike are not so after the block"):
        apps.Block(padded, jnp.zeros((3, 2)))


@pytest.mark.slow
def test_dropout() -> None:
    """Schoenholz et al. 2017, section 5: the variance has 1/rho, the covariance of two inputs not, and they never become alike."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        for _ in range(4):
            h = nn.dense(nn.dropout(jnp.tanh(h), 0.2), weight_var=W, bias_var=B)
        return nn.dense(h, features=1)

    block, q = found(net), 0.8
    second = mean(lambda z: np.tanh(np.sqrt(q) * z) ** 2)
    assert abs(block.variance(q) - (2.5 / 0.8 * second + 0.05)) < 1e-10
    assert abs(block.correlation(1.0, q) * block.variance(q) - (2.5 * second + 0.05)) < 1e-10
    assert abs(block.chi(q) - 2.5 / 0.8 * mean(lambda z: np.cosh(np.sqrt(q) * z) ** -4)) < 1e-10
    phase = block.phase(w=0.7)
    assert phase.name == "ordered" and phase.c < 0.999
    path = block.trajectory(1.0, 0.5, 60, w=0.7)
    np.testing.assert_allclose(path[-1], (phase.q, phase.c), rtol=1e-8)


def test_weights_with_their_transposes() -> None:
    """W^T erf(W h) is a Gaussian of variance E[erf^2], and the multiple E[erf'] of h."""

    def net(x: jax.Array) -> jax.Array:
        h, n = nn.dense(x), nn.width()
        for _ in range(4):
            w = nn.weight((n, n))
            h = w.T @ erf(w @ h / n**0.5) / n**0.5
        return nn.dense(h, features=1)

    q = 0.8
    slope = 2 / np.sqrt(np.pi * (1 + 2 * q))
    expected = second_moment(q) + slope**2 * q
    assert abs(found(net).variance(q) - expected) < 1e-10


@pytest.mark.slow
def test_loaded_kernels_and_networks(tmp_path: Path) -> None:
    kernel = tp.compile(perceptron, jnp.zeros(3))
    kernel.export(tmp_path / "deep.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "deep.tpk")
    for given in ((loaded,), (perceptron, jnp.zeros(3)), (kernel, jnp.zeros(3))):
        assert abs(apps.Block(*given).variance(0.8, w=1.0) - layer().variance(0.8, w=1.0)) < 1e-12


def after_the_sum(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    for _ in range(4):
        h = jnp.tanh(h + nn.dense(h))
    return nn.dense(h, features=1)


def shallow(x: jax.Array) -> jax.Array:
    return perceptron(x, 2)


def recurrent(x: jax.Array) -> jax.Array:
    n = nn.width()
    w, u, h = nn.weight((n, n)), nn.weight((n, 1)), jnp.zeros(n)
    for t in range(3):
        h = jnp.tanh(w @ h / n**0.5 + u @ x[t : t + 1])
    return nn.dense(h, features=1)


def changing(x: jax.Array) -> jax.Array:
    for k in range(4):
        x = jnp.tanh(nn.dense(x, weight_var=1.0 + k))
    return nn.dense(x, features=1)


def tied(x: jax.Array) -> jax.Array:
    h, n = nn.dense(x), nn.width()
    w = nn.weight((n, n))
    for _ in range(4):
        h = h + w @ jnp.tanh(h) / n**0.5
    return nn.dense(h, features=1)


def alternating(x: jax.Array) -> jax.Array:
    """Layers with one of two weights in turn: neighbours share none, but what they add is not new to those after."""
    h, n = nn.dense(x), nn.width()
    weights = [nn.weight((n, n)), nn.weight((n, n))]
    for k in range(6):
        h = h + weights[k % 2] @ jnp.tanh(nn.dense(h)) / n**0.5
    return nn.dense(h, features=1)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (after_the_sum, "hands on no Gaussian vector"),
        (shallow, "no two of the pieces between them in a row are the same"),
        (recurrent, "layers read the inputs again"),
        (changing, "no two of the pieces between them in a row are the same"),
        (alternating, "of a block that repeats is used outside of it too"),
        (tied, "the weight 'weight_0' of a block that repeats is used outside of it too"),
    ],
)
def test_networks_without_a_repeated_block(net: Callable, message: str) -> None:
    with pytest.raises(tp.InputError, match="(?s)the network has no block that repeats.*" + message):
        apps.Block(tp.compile(net, jnp.zeros(3), tolerance=1e-2))


def test_a_network_where_a_block_is_wanted() -> None:
    with pytest.raises(
        tp.UserError, match="if this is a whole network and not a block of one, give an example input too"
    ):
        apps.Block(perceptron)


def test_the_same_weight_in_every_layer() -> None:
    """Without skip connections its layers are as those of fresh weights; the two in a row that are compared say so."""

    def net(x: jax.Array) -> jax.Array:
        h, n = nn.dense(x), nn.width()
        w = nn.weight((n, n))
        for _ in range(4):
            h = w @ erf(h) / n**0.5
        return nn.dense(h, features=1)

    assert abs(found(net).variance(0.8) - second_moment(0.8)) < 1e-10


@pytest.mark.slow
def test_depth_of_sampled_residual_networks() -> None:
    """Variances, correlations and squared Jacobians of twelve blocks, along the maps that were found, at width 1,024."""
    n, depth, draws = 1024, 12, 24
    q, c = 0.5, 0.3
    block = found(residual)
    path = block.trajectory(c, q, depth)
    growth = np.prod([block.chi(v) for v in path[:-1, 0]])

    def layer(key: jax.Array, h: jax.Array) -> jax.Array:
        u, b, v, a = jax.random.split(key, 4)
        inner = jnp.sqrt(2.5 / n) * jax.random.normal(u, (n, n)) @ h
        inner = inner + jnp.sqrt(0.05) * jax.random.normal(b, (n, 1))
        outer = jnp.sqrt(0.8 / n) * jax.random.normal(v, (n, n)) @ erf(inner)
        return h + outer + jnp.sqrt(0.3) * jax.random.normal(a, (n, 1))

    def run(h: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, key: (layer(key, h), None), h, keys)[0]

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        first, second, keys = jax.random.split(key, 3)
        z = jnp.sqrt(q) * jax.random.normal(first, (n, 2))
        h = jnp.stack([z[:, 0], c * z[:, 0] + jnp.sqrt(1 - c * c) * z[:, 1]], 1)
        keys = jax.random.split(keys, depth)
        end, pulled = jax.vjp(lambda h: run(h, keys), h)
        back = pulled(jnp.stack([jax.random.normal(second, (n,)), jnp.zeros(n)], 1))[0][:, 0]
        return jnp.stack([end[:, 0] @ end[:, 0] / n, end[:, 0] @ end[:, 1] / n, back @ back / n])

    values = np.array([one(key) for key in jax.random.split(jax.random.key(0), draws)])
    error = values.std(0, ddof=1) / np.sqrt(draws)
    expected = np.array([path[-1, 0], path[-1].prod(), growth])
    assert (np.abs(values.mean(0) - expected) < 4.5 * error + 2e-3 * expected).all()
