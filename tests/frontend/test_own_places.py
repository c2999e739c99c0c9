"""jnp.choose and tables of hidden columns read at hidden places, beside jnp.where."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

Function = Callable[[jax.Array], jax.Array]
X = np.random.default_rng(6).standard_normal((2, 3))


def few(h: jax.Array) -> jax.Array:
    return (h > 0).astype(int)


def by_where(h: jax.Array, cases: list[jax.Array]) -> jax.Array:
    return jnp.where(h > 0, cases[1], cases[0])


def cases(h: jax.Array) -> list[jax.Array]:
    return [h, h**2]


CASES: dict[str, tuple[Function, Function]] = {
    "choose": (lambda h: jnp.choose(few(h), cases(h), mode="clip"), lambda h: by_where(h, cases(h))),
    "by numbers of coordinates": (
        lambda h: jnp.stack(cases(h))[few(h), jnp.arange(h.size)],
        lambda h: by_where(h, cases(h)),
    ),
    "numbers first": (
        lambda h: jnp.stack(cases(h), 1)[jnp.arange(h.size), few(h)],
        lambda h: by_where(h, cases(h)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_beside_where(name: str) -> None:
    one, other = (
        uncompiled(tp.compile(lambda x, f=f: nn.dense(f(nn.dense(x)), features=1), X[0]), X) for f in CASES[name]
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow
def test_three_cases() -> None:
    choice = lambda h: jnp.choose(jnp.clip(jnp.floor(h), -1, 1).astype(int) + 1, [h, h**2, 1 - h], mode="clip")
    wheres = lambda h: jnp.where(h < 0, h, jnp.where(h < 1, h**2, 1 - h))
    one, other = (
        uncompiled(tp.compile(lambda x, f=f: nn.dense(f(nn.dense(x)), features=1), X[0]), X) for f in (choice, wheres)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_at_finite_width() -> None:
    """The readout's gradient is the hidden layer itself, so that its square has the NNGP kernel for its limit."""
    net = lambda x: nn.dense(CASES["choose"][0](nn.dense(x)), features=1, name="out")
    limit, width = float(uncompiled(tp.compile(net, X[0]), X[:1]).nngp[0, 0]), 2**14
    params = tp.init(net, X[0], width, jax.random.key(0))
    slope = jax.jit(jax.grad(lambda p: tp.apply(net, p, jnp.asarray(X[0]))[0]))(params)["out.weight"]
    squares = np.asarray(slope).ravel() ** 2 * width
    assert abs(squares.mean() - limit) < 4.5 * squares.std() / np.sqrt(width)


def test_what_is_refused() -> None:
    number = lambda h: jnp.concatenate([few(h)[:, None], jnp.arange(h.size)[:, None]], 1).sum(1) * h
    with pytest.raises(tp.UnsupportedError, match="numbers of the coordinates"):
        tp.compile(lambda x: nn.dense(number(nn.dense(x)), features=1), X[0])
