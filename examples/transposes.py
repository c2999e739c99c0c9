"""Weights used together with their transposes, and symmetric weights: limits where gradient independence would be wrong.

Four programs beside sampled networks: powers of random matrices (moments of the semicircle and of Marchenko and Pastur), a tied
autoencoder with its NTK, and approximate message passing with and without the Onsager term.
Run `python examples/transposes.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn


def symmetric_power(order: int) -> Callable[[jax.Array], jax.Array]:
    """v (W / sqrt(n))^order U x with a symmetric W: its variance is the moment of order 2 * order of the semicircle."""

    def net(x: jax.Array) -> jax.Array:
        w, h = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
        for _ in range(order):
            h = w @ h
        return nn.dense(h, features=1)

    return net


def wishart_power(order: int) -> Callable[[jax.Array], jax.Array]:
    """v (W'W / n)^order U x, W of (2 n, n): moments of Marchenko and Pastur's law of ratio 2."""

    def net(x: jax.Array) -> jax.Array:
        w, h = nn.weight((nn.width(2), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
        for _ in range(order):
            h = w.T @ (w @ h)
        return nn.dense(h, features=1)

    return net


def autoencoder(x: jax.Array) -> jax.Array:
    """Two tied layers: the decoder's weight is the encoder's, transposed (Nguyen and Li 2019)."""
    w, h = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
    return nn.dense(jax.nn.relu(w.T @ jax.nn.relu(w @ h)), features=1)


def message_passing(x: jax.Array, steps: int = 3, onsager: bool = True) -> jax.Array:
    """h_{t+1} = W tanh(h_t) - mean(tanh'(h_t)) tanh(h_{t-1}) with a symmetric W (Bolthausen 2014)."""
    w, h = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
    f, before = jnp.tanh(h), None
    for _ in range(steps):
        h = w @ f if before is None or not onsager else w @ f - jnp.mean(1 - jnp.tanh(h) ** 2) * before
        f, before = jnp.tanh(h), f
    return nn.dense(h, features=1)


def sampled(net: Callable, x: jax.Array, width: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean NNGP kernel and NTK of sampled networks, (N, N) each."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = tp.init(net, x[0], width, key)
        slopes = jax.vmap(lambda xi: jax.grad(lambda p: tp.apply(net, p, xi)[0])(params))(x)
        gram = {k: g.reshape(len(x), -1) @ g.reshape(len(x), -1).T for k, g in slopes.items()}
        last = [k for k in gram if k.startswith("dense")][-1]  # the readout's gradient is the last hidden layer
        return gram[last], sum(gram.values())

    nngp, ntk = jax.lax.map(one, jax.random.split(jax.random.key(width), draws))
    return np.mean(nngp, 0), np.mean(ntk, 0)


def rounded(kernel: np.ndarray) -> list[list[float]]:
    """For printing."""
    return np.round(np.asarray(kernel, np.float64), 3).tolist()


def show(name: str, net: Callable, x: jax.Array) -> None:
    """Print the limit beside networks of growing width."""
    found = tp.compile(net, x[0])(x)
    print(f"{name}\n  limit       NNGP {rounded(found.nngp)}  NTK {rounded(found.ntk)}")
    for width in (64, 256):
        nngp, ntk = sampled(net, x, width, 64)
        print(f"  width {width:4d}  NNGP {rounded(nngp)}  NTK {rounded(ntk)}")


def main() -> None:
    """Print moments, kernels and the Zdots of message passing."""
    one = jnp.ones((1, 1))
    for name, power in (("semicircle", symmetric_power), ("Marchenko-Pastur, ratio 2", wishart_power)):
        moments = [round(float(tp.compile(power(k), one[0])(one, get="nngp")[0, 0])) for k in range(1, 6)]
        print(f"moments of order 2, 4, .., 10 of the {name} law: {moments}")
    x = jnp.array([[1.0, 0.4], [-0.3, 1.1]])
    show("\ntied autoencoder", autoencoder, x)
    show("\nmessage passing", message_passing, x)
    print("\nthe program of two steps without the Onsager term, which emerges as a Zdot (in v7):")
    print(tp.compile(lambda x: message_passing(x, 2, False), x[0]).exposed_program)


if __name__ == "__main__":
    main()
