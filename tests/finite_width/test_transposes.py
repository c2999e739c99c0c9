"""Networks with transposes and symmetric weights beside sampled ones of growing width: NNGP kernel and NTK, with their rates."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tests.sampling import check, tensorprog_network

pytestmark = pytest.mark.slow

relu, erf = jax.nn.relu, jax.scipy.special.erf
WIDTHS, DRAWS = (32, 64, 128, 256), (1500, 800, 400, 200)


def autoencoder(encode: Callable, decode: Callable, ratio: float = 1.0) -> Callable:
    def net(nn, x, features=1):
        w = nn.weight((nn.width(ratio), nn.width()))
        h = encode(w @ nn.dense(x) / jnp.sqrt(nn.width()))
        return nn.dense(decode(w.T @ h / jnp.sqrt(nn.width(ratio))), features=features)

    return net


def recurrent(phi: Callable) -> Callable:
    def net(nn, x, features=1):
        w, u = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
        h = phi(u[0])
        for t in range(1, x.shape[0]):
            h = phi(0.8 * w @ h + u[t])
        return nn.dense(h, features=features)

    return net


def power(nn, x, features=1):
    w, h = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
    return nn.dense(w @ (w @ (w @ h)), features=features)


def wishart(nn, x, features=1):
    w, h = nn.weight((nn.width(2), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
    return nn.dense(w.T @ (w @ (w.T @ (w @ h))) / 4, features=features)


def message_passing(onsager: bool) -> Callable:
    def net(nn, x, features=1):
        w, h = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
        first = erf(h)
        h = w @ first
        second = w @ erf(h)
        if onsager:
            second = second - jnp.mean(jax.vmap(jax.grad(erf))(h)) * first
        return nn.dense(second, features=features)

    return net


def tokens(nn, x, features=1):
    w, h = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
    mixed = jnp.array([[0.5, 0.5, 0.0], [-0.2, 0.7, 0.6], [0.3, 0.3, 0.3]]) @ relu(h @ w)
    return nn.dense((mixed @ w.T).mean(0), features=features)


def convolution(nn, x, features=1):
    n, places = nn.width(), np.arange(x.shape[0])
    w, h = nn.weight((3, n, n)) / jnp.sqrt(3 * n), nn.dense(x)
    hidden = relu(jnp.einsum("kio,ski->so", w, h[(places[:, None] + np.arange(-1, 2)) % len(places)]))
    back = hidden[(places[:, None] - np.arange(-1, 2)) % len(places)]
    return nn.dense(jnp.einsum("kio,sko->si", w, back).sum(0), features=features)


def jump(nn, x, features=1):
    w = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width())
    return nn.dense(w.T @ jnp.sign(w @ nn.dense(x)), features=features)


def jump_of_positions(nn, x, features=1):
    """A jump of sampled variables that mixes positions."""
    n = nn.width()
    w, h = nn.weight((n, n)) / jnp.sqrt(n), nn.dense(x)
    made = jnp.tanh(h @ w.T).mean(0) - 0.1 * relu(nn.dense(h)).mean(0)
    return nn.dense(jnp.sign(made) @ w, features=features)


def two_layers(nn, x, features=1):
    """Encoder and decoder of two tied layers each; a hidden state meets the one below it."""
    n = nn.width()
    w, v = nn.weight((n, n)) / jnp.sqrt(n), nn.weight((n, n)) / jnp.sqrt(n)
    h = erf(w @ nn.dense(x))
    h = erf(v.T @ erf(v @ h))
    return nn.dense(w.T @ h, features=features)


FLAT, SEQUENCE = (2, 3), (2, 3, 2)
NETWORKS: dict[str, tuple[Callable, tuple[int, ...], float | None]] = {
    "linear autoencoder": (autoencoder(lambda h: h, lambda h: h), FLAT, None),
    "relu autoencoder": (autoencoder(relu, relu), FLAT, None),
    "wide autoencoder": (autoencoder(erf, relu, 2.0), FLAT, None),
    "two tied layers": (two_layers, FLAT, 1e-3),
    "linear recurrence": (recurrent(lambda h: h), SEQUENCE, None),
    "recurrence": (recurrent(erf), SEQUENCE, 1e-3),
    "power of a symmetric matrix": (power, FLAT, None),
    "wishart": (wishart, FLAT, None),
    "message passing": (message_passing(True), FLAT, None),
    "message passing without its correction": (message_passing(False), FLAT, None),
    "tokens": (tokens, SEQUENCE, None),
    "convolution": (convolution, SEQUENCE, None),
    "jump": (jump, FLAT, None),
    "jump of positions": (jump_of_positions, SEQUENCE, 1e-2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sampled(name: str) -> None:
    net, shape, tolerance = NETWORKS[name]
    x = np.random.default_rng(7).normal(size=shape)
    kernel = tp.compile(lambda x: net(tp.nn, x), jnp.zeros(shape[1:]), tolerance=tolerance)
    found = kernel(jnp.asarray(x))
    check(tensorprog_network(net, x), (found.nngp, found.ntk), WIDTHS, DRAWS, seed=1, resolution=0.03)
