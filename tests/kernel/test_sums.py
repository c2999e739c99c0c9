"""Functions that are linear in sums over positions: products with pooled images, and gradients in what all positions share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests import sampling
from tests.everyday import everyday
from tests.references import duals, gram, quadrature
from tests.uncompiled import uncompiled

erf, relu = jax.scipy.special.erf, jax.nn.relu
COUNT = 5  # positions: sums of up to four are opened before (`passes.spread`)
X = np.random.default_rng(0).standard_normal((2, COUNT, 2))


def check(
    net: Callable[[jax.Array], jax.Array], nngp: np.ndarray, ntk: np.ndarray | None, method: str = "auto"
) -> None:
    found = uncompiled(tp.compile(net, X[0], method=method), X)
    for a, b in zip(found, (nngp, ntk), strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_a_layer_times_a_pooled_image(method: str) -> None:
    """As squeeze and excitation, without a squeeze: g relu(h).mean(0), of independent g and h."""
    own = gram.dense(gram.inputs(X))
    pooled = gram.positions(gram.activation(own, duals.relu), np.full((COUNT, COUNT), 1 / COUNT))
    last = gram.positions(gram.product(own, pooled), gram.average(COUNT))
    net = lambda x: nn.dense((nn.dense(x) * relu(nn.dense(x)).mean(0)).mean(0), features=1)
    check(net, *gram.readout(last), method=method)


@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_a_sum_of_images_and_gaussians_as_a_factor(method: str) -> None:
    """g (relu(h) + 2 erf(k) + 3 h).sum(0): each addend of the factor by itself, and products of two of them."""
    own = gram.dense(gram.inputs(X))
    first, second = gram.activation(own, duals.relu), gram.activation(own, duals.erf)
    # E[h relu(h')] = K / 2, as of h and half of h beside an even function; relu' has the mean 1 / 2
    mixed = lambda k: 3 * k / 2
    factor = gram.Gram(
        first.nngp + 4 * second.nngp + 9 * own.nngp + 2 * mixed(own.nngp),
        first.ntk + 4 * second.ntk + 9 * own.ntk + 2 * mixed(own.ntk),
        first.mean,
    )
    whole = gram.positions(factor, np.ones((COUNT, COUNT)))
    last = gram.positions(gram.product(own, whole), gram.average(COUNT))

    def net(x: jax.Array) -> jax.Array:
        g, h, k = nn.dense(x), nn.dense(x), nn.dense(x)
        return nn.dense((g * (relu(h) + 2 * erf(k) + 3 * h).sum(0)).mean(0), features=1)

    check(net, *gram.readout(last), method=method)


@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_a_number_beside_a_pooled_image_in_an_average(method: str) -> None:
    pooled = gram.positions(gram.activation(gram.dense(gram.inputs(X)), duals.relu), gram.average(COUNT))
    mean = X[:, 0, 0] + pooled.mean[:, 0]
    net = lambda x: jnp.mean(x[0, 0] + relu(nn.dense(x)).mean(0))
    check(net, np.outer(mean, mean), pooled.ntk[:, 0, :, 0], method=method)


def test_products_of_pooled_images_without_a_rule_are_refused_as_functions_of_many_positions() -> None:
    net = lambda x: nn.dense(relu(nn.dense(x)).mean(0) ** 2, features=1)
    with pytest.raises(tp.UnsupportedError, match="function of many positions of a hidden layer"):
        tp.compile(net, X[0])


def test_a_layer_times_its_own_pooled_image() -> None:
    """h_0 (sin(h_0) + 2 sin(h_1)): four Gaussians, by quadrature."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        return nn.dense(h[0] * (jnp.array([[1.0], [2.0], [0.0], [0.0], [0.0]]) * jnp.sin(h)).sum(0), features=1)

    rows = X[:, :2].reshape(4, 2) / 2  # so small that the rule holds
    covariance = rows @ rows.T / 2
    image = lambda a, b: a * (np.sin(a) + 2 * np.sin(b))

    def mean(i: int, j: int) -> float:
        some = [2 * i, 2 * i + 1, 2 * j, 2 * j + 1]
        return quadrature.expectation(lambda *z: image(*z[:2]) * image(*z[2:]), covariance[np.ix_(some, some)], 30)

    wanted = np.array([[mean(i, j) for j in range(2)] for i in range(2)])
    found = uncompiled(tp.compile(net, X[0]), X / 2)
    np.testing.assert_allclose(found.nngp, wanted, rtol=1e-10)


def test_sums_over_so_many_positions_that_no_memory_holds_their_pairs_are_refused() -> None:
    net = lambda x: nn.dense((nn.dense(x) * erf(nn.dense(x)).mean(0)).mean(0), features=1)
    with pytest.raises(tp.UnsupportedError, match="function of many positions of a hidden layer"):
        tp.compile(net, jnp.zeros((65, 2)))


def squeezed(nn, x, features):
    h = nn.dense(x)
    return nn.dense((h * erf(h).mean(0)).mean(0), features)


@pytest.mark.slow
def test_finite_networks_approach_it() -> None:
    kernel = tp.compile(lambda x: squeezed(nn, x, 1), X[0])
    network = sampling.tensorprog_network(squeezed, X)
    sampling.check(network, tuple(kernel(X)), (32, 64, 128, 256), (8000, 4000, 2000, 1000))


def shared(
    read: Callable[[jax.Array], jax.Array], layer: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """An average over the width of one vector, at every position, times images."""

    def net(x: jax.Array) -> jax.Array:
        v = nn.weight((nn.width(),))
        return read((v + jnp.sin(v)) * relu(layer(x))).sum(-1) / nn.width()

    return net


SHARED = {
    "each position": shared(lambda h: h, nn.dense),
    "pooled": shared(lambda h: h.mean(0), nn.dense),
    "a convolution, three with weights": shared(
        lambda h: jnp.array([1.0, -2.0, 0.5, 0.0, 1.0]) @ h, lambda x: nn.conv(x, window=(2,))
    ),
}


@pytest.mark.parametrize("name", everyday(SHARED))
def test_gradients_in_a_vector_that_all_positions_share(name: str) -> None:
    tangent = uncompiled(tp.compile(SHARED[name], X[0], method="tangent"), X)
    check(SHARED[name], *tangent, method="adjoint")
