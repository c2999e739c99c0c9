"""Readouts divided by n, used as the numbers that they are in the limit.

Written differently, v is a layer of one input that is always one: v @ h / n is jnp.mean(g * h), an average of hidden vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

n = nn.width
Average = Callable[[jax.Array], jax.Array]  # (1/n) v.h of a hidden vector h
Net = Callable[[jax.Array, jax.Array, Average], jax.Array]


def of_readout(net: Net) -> Callable[[jax.Array], jax.Array]:
    def code(x: jax.Array) -> jax.Array:
        v = nn.weight((n(),), name="v")
        return net(x, v, lambda h: h @ v / n())

    return code


def of_layer(net: Net) -> Callable[[jax.Array], jax.Array]:
    def code(x: jax.Array) -> jax.Array:
        v = nn.dense(jnp.ones(1), name="v")
        return net(x, v, lambda h: jnp.mean(h * v, axis=-1))

    return code


def layer(x: jax.Array) -> jax.Array:
    return nn.dense(x)


def summed(h: jax.Array, mean: Average) -> jax.Array:
    return jnp.mean(h**2) + mean(h)


def inside(x: jax.Array, v: jax.Array, mean: Average) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(x) * (1 + mean(jnp.sin(layer(x) + v)))), features=1)


def scaled_and_bent(x: jax.Array, v: jax.Array, mean: Average) -> jax.Array:
    h = layer(x)
    return jnp.mean(jax.nn.relu(h) ** 2) * jnp.exp(-2 * mean(jnp.sin(h + v))) - 3 * mean(v * h**2)


CASES: dict[str, Net] = {
    "a sum": lambda x, v, mean: summed(jnp.sin(layer(x) + v), mean),
    "a sum, independent": lambda x, v, mean: jnp.mean(jnp.cos(layer(x)) ** 2) + mean(jnp.sin(layer(x))),
    "inside": inside,
    "scaled and bent": scaled_and_bent,
    "beside a readout": lambda x, v, mean: nn.dense(layer(x), features=1) + mean(jnp.sin(layer(x)))[None],
    "a product of two": lambda x, v, mean: mean(jnp.sin(layer(x) + v)) * mean(v),
}
FIELDS: dict[str, Net] = {
    "a sum over positions": lambda x, v, mean: nn.dense(mean(jnp.sin(layer(x) + v)) @ nn.dense(x), features=1),
    "a layer": lambda x, v, mean: nn.dense(jax.nn.relu(nn.dense(mean(jnp.sin(layer(x) + v)))), features=1),
    "a learned query": lambda x, v, mean: nn.dense(jax.nn.softmax(mean(layer(x) + v)) @ layer(x), features=1),
    "the largest": lambda x, v, mean: nn.dense(nn.dense(x[0]) * jnp.max(mean(jnp.sin(x[:, :1] * v))), features=1),
}
X, SEQUENCES = (np.random.default_rng(0).standard_normal(shape) for shape in ((2, 3), (2, 3, 2)))


@pytest.mark.parametrize("name", [*CASES, *FIELDS])
def test_averages_written_differently(name: str) -> None:
    net, x = (CASES[name], X) if name in CASES else (FIELDS[name], SEQUENCES)
    one, other = (tp.compile(way(net), x[0]) for way in (of_readout, of_layer))
    assert one.ntk_power == other.ntk_power == int(name in CASES and name not in ("inside", "beside a readout"))
    for a, b in zip(uncompiled(one, x), uncompiled(other, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1e-3, float(np.abs(b).max())))


def test_in_closed_form() -> None:
    """E sin(z)^2 + E v sin(z), z = u + v of the variance q: (1 - e^(-2 q)) / 2, and by Stein's lemma E cos(z) = e^(-q / 2)."""
    q = (X**2).mean(1) + 1
    mean = tp.joint(of_readout(CASES["a sum"]), X[0]).mean(X)
    np.testing.assert_allclose(mean, (1 - np.exp(-2 * q)) / 2 + np.exp(-q / 2), rtol=1e-12)


@pytest.mark.parametrize("name", ["a sum", "a sum, independent", "scaled and bent"])
def test_at_finite_width(name: str) -> None:
    """Values and n times the products of gradients stray by 1/sqrt(n)."""
    net, x = of_readout(CASES[name]), X[0]
    kernel = tp.compile(net, x)
    mean = tp.joint(net, x).mean(x[None])[0]
    ntk = float(uncompiled(kernel, x[None]).ntk[0, 0])
    strays = {}
    for width in (256, 4096):

        def drawn(key: jax.Array, width: int = width) -> jax.Array:
            f, slope = jax.value_and_grad(lambda p: tp.apply(net, p, x))(tp.init(net, x, width, key))
            return jnp.stack([f, width * sum(jnp.sum(g**2) for g in slope.values())])

        keys = jax.vmap(jax.random.key)(jnp.arange(24))
        errors = np.asarray(jax.jit(lambda keys: jax.lax.map(drawn, keys))(keys)) - (mean, ntk)
        spread = errors.std(0, ddof=1)
        assert np.all(np.abs(errors.mean(0)) < 4.5 * spread / np.sqrt(len(errors)) + 4 / width), (width, errors.mean(0))
        strays[width] = spread
    np.testing.assert_allclose(strays[256] / strays[4096], 4.0, rtol=0.75)  # 24 draws know a spread to 15 percent


def test_they_stay_readouts_where_they_are_scaled_back() -> None:
    """v.h / n times sqrt(n), added up from zero, moved and multiplied by numbers of the input."""

    def net(x: jax.Array) -> jax.Array:
        v, h = nn.weight((2, n()), name="v"), jax.nn.relu(layer(x))
        return (sum(jnp.sqrt(n()) * x[i] * (v @ h / n())[::-1][i] for i in range(2)))[None]

    plain = tp.compile(lambda x: jnp.sqrt(x[0] ** 2 + x[1] ** 2) * nn.dense(jax.nn.relu(layer(x)), features=1), X[0])
    a, b = uncompiled(tp.compile(net, X[0]), X).nngp, uncompiled(plain, X).nngp
    np.testing.assert_allclose(np.diag(a), np.diag(b), rtol=1e-12)


def test_what_has_no_limit() -> None:
    """Divided by sqrt(n) it stays random, and grows where v is a part of h."""
    net = lambda x: nn.dense(layer(x) * jnp.tanh(nn.weight((n(),)) @ layer(x) / jnp.sqrt(n())), features=1)
    with pytest.raises(tp.UnsupportedError, match="nonlinear function of an output of finite size"):
        tp.compile(net, X[0])
    tied = lambda x, v, mean: jnp.mean(layer(x) ** 2) + jnp.sqrt(n()) * mean(jnp.sin(layer(x) + v))
    with pytest.raises(tp.UnsupportedError, match="used in two ways"):
        tp.compile(of_readout(tied), X[0])
