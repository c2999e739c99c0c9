"""Functions of averages that vanish in the limit: what jumps there is refused, with the theorem's hypothesis, and what is continuous is not."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

X = np.random.default_rng(0).standard_normal((2, 3))
Function = Callable[[jax.Array, jax.Array], jax.Array]  # of an average that vanishes, and of one that does not


def averages(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = nn.dense(x)
    return jnp.mean(jnp.tanh(h)), jnp.mean(h**2)


def scaled(function: Function) -> Callable[[jax.Array], jax.Array]:
    return lambda x: nn.dense(function(*averages(x)) * nn.dense(x), features=1)


JUMPS: dict[str, Function] = {
    "sign": lambda m, q: jnp.sign(m),
    "sign of a product": lambda m, q: jnp.sign(jnp.sin(m) * q),
    "comparison": lambda m, q: jnp.where(m > 0, 1.0, 2.0),
    "ratio": lambda m, q: m / jnp.abs(m),
    "pole": lambda m, q: 1 / m,
    "logarithm": lambda m, q: jnp.log(jnp.abs(m)),
}
CONTINUOUS: dict[str, tuple[Function, Function]] = {
    "modulus": (lambda m, q: jnp.abs(m) + q, lambda m, q: q),
    "root": (lambda m, q: jnp.sqrt(q) + jnp.sqrt(jnp.abs(m)), lambda m, q: jnp.sqrt(q)),
    "a jump elsewhere": (lambda m, q: jnp.where(m > -1, q, 0.0), lambda m, q: q),
    "a sign of what does not vanish": (lambda m, q: jnp.sign(q + m) * q, lambda m, q: q),
    "divided by what does not vanish": (lambda m, q: q / (q + m), lambda m, q: jnp.ones(())),
}


@pytest.mark.parametrize("name", JUMPS)
def test_jumps_are_refused(name: str) -> None:
    with pytest.raises(
        tp.UnsupportedError, match=r"where they are zero(.|\n)*parameter-controlled; Tensor Programs III"
    ):
        tp.compile(scaled(JUMPS[name]), X[0])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_is_continuous_has_its_limit(name: str) -> None:
    one, other = (uncompiled(tp.compile(scaled(f), X[0]), X) for f in CONTINUOUS[name])
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_slopes_below_an_average() -> None:
    """The gradient of a modulus at zero has a sign by chance; that of a square is zero."""
    with pytest.raises(tp.UnsupportedError, match="the slope of a function of averages"):
        tp.compile(lambda x: (lambda m, q: jnp.abs(m) + q)(*averages(x)), X[0])
    square = tp.compile(lambda x: (lambda m, q: m**2 + q)(*averages(x)), X[0])
    plain = tp.compile(lambda x: averages(x)[1], X[0])
    np.testing.assert_allclose(uncompiled(square, X).ntk, uncompiled(plain, X).ntk, rtol=1e-12)


def test_a_readout_divided_by_n() -> None:
    def net(x: jax.Array) -> jax.Array:
        v = nn.weight((nn.width(),))
        return nn.dense(jnp.sign(v @ nn.dense(x) / nn.width()) * nn.dense(x), features=1)

    with pytest.raises(tp.UnsupportedError, match="where they are zero"):
        tp.compile(net, X[0])
    with pytest.raises(tp.UnsupportedError, match="where they are zero"):
        tp.joint(lambda x: {"hidden": jnp.sign(averages(x)[0]) * nn.dense(x)}, X[0])
