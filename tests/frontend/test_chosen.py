"""Searches in tables, choices, bounds that are no numbers, and order among positions: beside the same functions written otherwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

X = np.random.default_rng(31).standard_normal((3, 4))
PLACES = np.array([-0.5, 0.25, 0.8])
TABLE = np.array([0.4, -1.0, 0.7])
S = 0.75


def hyper() -> jax.Array:
    return tp.hyper("s", S)


# Of one hidden vector; the other function is written with comparisons of numbers alone.
OF_ONE = {
    "interpolation": (
        lambda h: jnp.interp(h, PLACES[::2], np.array([0.1, 1.4])),
        lambda h: jnp.clip(h, -0.5, 0.8) + 0.6,
    ),
    "search": (lambda h: jnp.searchsorted(PLACES, h) * 1.0, lambda h: sum((h > p) * 1.0 for p in PLACES)),
    "a search in a short table": (
        lambda h: jnp.asarray(TABLE)[jnp.searchsorted(np.zeros(1), h)],
        lambda h: jnp.where(h > 0, TABLE[1], TABLE[0]),
    ),
    "search from the right": (
        lambda h: jnp.searchsorted(PLACES, h, side="right", method="compare_all") * 1.0,
        lambda h: sum((h >= p) * 1.0 for p in PLACES),
    ),
    "bins": (lambda h: h * jnp.digitize(h, PLACES[:2]), lambda h: h * (1.0 * (h >= PLACES[0]) + (h >= PLACES[1]))),
    "select": (
        lambda h: jnp.select([h < -1, h < 1], [h, h**2], jnp.tanh(h)),
        lambda h: jnp.where(h < -1, h, jnp.where(h < 1, h**2, jnp.tanh(h))),
    ),
    "select of two": (lambda h: jnp.select([h < 0, h > -1], [h, h / 2]), lambda h: jnp.where(h < 0, h, h / 2)),
    "a table": (
        lambda h: jnp.asarray(TABLE)[jnp.clip(jnp.floor(2 * h), 0, 2).astype(int)],
        lambda h: TABLE[0] + (TABLE[1] - TABLE[0]) * (h >= 0.5) + (TABLE[2] - TABLE[1]) * (h >= 1),
    ),
    "a table of rounded values": (
        lambda h: jnp.take(jnp.asarray(TABLE), jnp.round(h).astype(int), mode="clip"),
        lambda h: TABLE[0] + (TABLE[1] - TABLE[0]) * (h > 0.5) + (TABLE[2] - TABLE[1]) * (h >= 1.5),
    ),
    "clipped by a parameter": (lambda h: jnp.clip(h, -hyper(), hyper()), lambda h: jnp.clip(h, -S, S)),
    "clipped the other way round": (
        lambda h: jnp.maximum(jnp.minimum(h, hyper()), -0.25),
        lambda h: jnp.clip(h, -0.25, S),
    ),
    "bounds that cross": (lambda h: h + jnp.clip(h, hyper(), 0.5), lambda h: h + 0.5),
    "whole multiples of a parameter": (lambda h: h // hyper(), lambda h: jnp.floor(h / S)),
    "the remainder by a parameter": (lambda h: jnp.mod(h, hyper()), lambda h: h - S * jnp.floor(h / S)),
}


SLOW_OF_ONE = [
    "interpolation", "search", "search from the right", "bins", "clipped by a parameter", "clipped the other way round", "a table",
    "whole multiples of a parameter", "the remainder by a parameter",
]  # fmt: skip


@pytest.mark.parametrize("name", everyday(OF_ONE, SLOW_OF_ONE, long=["select", "a table of rounded values"]))
def test_functions_of_one_vector(name: str) -> None:
    one, two = (
        uncompiled(tp.compile(lambda x, f=f: nn.dense(f(nn.dense(x, bias_var=0.1)), features=1), jnp.zeros(4)), X)
        for f in OF_ONE[name]
    )
    np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-10)
    np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-10)


# Of two positions, (2, n).
OF_TWO = {
    "a running product": (lambda h: jnp.cumprod(h, 0), lambda h: jnp.stack([h[0], h[0] * h[1]])),
    "a running maximum": (lambda h: lax.cummax(h, 0), lambda h: jnp.stack([h[0], jnp.maximum(h[0], h[1])])),
    "a running minimum, backwards": (
        lambda h: lax.cummin(h, 0, reverse=True), lambda h: jnp.stack([jnp.minimum(h[0], h[1]), h[1]]),
    ),
    "sorted": (lambda h: jnp.sort(h, 0), lambda h: jnp.stack([jnp.minimum(*h), jnp.maximum(*h)])),
    "the largest": (lambda h: lax.top_k(h.T, 1)[0].T, lambda h: h.max(0)),
    "where the largest is": (lambda h: h * jnp.argmax(h, 0), lambda h: h * (h[1] > h[0])),
    "a product": (lambda h: jnp.prod(h, 0), lambda h: h[0] * h[1]),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", everyday(OF_TWO, ["sorted", "the largest", "a product", "a running minimum, backwards"])
)
def test_functions_of_two_positions(name: str) -> None:
    x = X.reshape(3, 2, 2)
    one, two = (
        uncompiled(tp.compile(lambda x, f=f: nn.dense(f(nn.dense(x)).reshape(-1), features=1), jnp.zeros((2, 2))), x)
        for f in OF_TWO[name]
    )
    np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-9)
    np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-9)
