"""What the derivation says of networks outside the theorem's hypotheses, for which the formulas hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn


def tied(phi: Callable) -> Callable:
    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width())
        return nn.dense(w.T @ phi(w @ nn.dense(x)), features=1)

    return net


def plain(phi: Callable) -> Callable:
    return lambda x: nn.dense(phi(nn.dense(x)), features=1)


def normed(epsilon: float) -> Callable:
    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        return nn.dense(jax.nn.relu((h - h.mean(0)) / jnp.sqrt(h.var(0) + epsilon)), features=1)

    return net


SAID = {
    "exp, with a transpose": (tied(jnp.exp), (3,), "grows faster than every polynomial"),
    "a jump, with a transpose": (tied(jnp.sign), (3,), "its derivative is a distribution"),
    "batch norm without epsilon": (normed(0.0), (5, 3), "is not bounded by a polynomial where"),
}
UNSAID = {
    "relu, with a transpose": (tied(jax.nn.relu), (3,)),
    "erf, with a transpose": (tied(jax.scipy.special.erf), (3,)),
    "exp, without": (plain(jnp.exp), (3,)),
    "a step, without": (plain(lambda h: jnp.where(h > 0, 1.0, 0.0)), (3,)),
    "batch norm with epsilon": (normed(1e-3), (5, 3)),
}


@pytest.mark.parametrize("name", SAID)
def test_a_caveat(name: str) -> None:
    net, shape, text = SAID[name]
    page = str(tp.compile(net, jnp.zeros(shape)).derivation())
    assert "caveat:" in page.lower() and text in page


@pytest.mark.parametrize("name", UNSAID)
def test_none(name: str) -> None:
    net, shape = UNSAID[name]
    assert "caveat:" not in str(tp.compile(net, jnp.zeros(shape)).derivation()).lower()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cbrt", "sqrt of abs", "abs to the power 0.55"])
def test_slopes_out_of_reach_are_refused(name: str) -> None:
    """E[|u|^(-4/3)] and E[1 / |u|] are infinite, and so is the tangent kernel of an input with itself, whatever a sample says; E[|u|^-0.9]
    is not, but out of reach of any sample."""
    power = lambda h: jnp.abs(h) ** 0.55
    phi = {"cbrt": jnp.cbrt, "sqrt of abs": lambda h: jnp.sqrt(jnp.abs(h)), "abs to the power 0.55": power}[name]
    with pytest.raises(tp.UnsupportedError, match="whose moments cannot be sampled"):
        tp.compile(plain(phi), jnp.ones(2), tolerance=1e-3)


@pytest.mark.parametrize(
    ("phi", "mean"),
    [
        (jnp.cbrt, 2 ** (2 / 3) * math.gamma(7 / 6) / math.pi**0.5),
        (lambda u: jnp.sqrt(jax.nn.relu(u)), 2 ** (-1 / 4) * math.gamma(5 / 4) / math.pi**0.5),
    ],
    ids=["cbrt", "sqrt of relu"],
)
def test_slopes_with_poles_between_a_weight_and_its_transpose(phi, mean: float) -> None:
    """W' phi(W h) has the part E[phi'(u)] h, and E[phi'(u)] = E[u phi(u)], which samples follow where they do not follow the slope."""

    def net(x: jax.Array) -> jax.Array:
        n, h = nn.width(), nn.dense(x)
        w = nn.weight((n, n))
        return jnp.mean(h * (w.T @ jax.lax.stop_gradient(phi(w @ h / n**0.5)) / n**0.5))

    found = tp.joint(net, jnp.zeros(2), tolerance=1e-2).mean(jnp.ones((1, 2)))
    assert abs(float(np.ravel(found)[0]) - mean) < 1e-3 * mean  # sampled


def test_slopes_that_are_no_numbers_are_refused() -> None:
    """The slope of sqrt(relu(h)) below zero is infinity times 0, in JAX as well."""
    with pytest.raises(tp.UnsupportedError, match="it is no number somewhere"):
        tp.compile(plain(lambda h: jnp.sqrt(jax.nn.relu(h))), jnp.ones(2))


def test_numbers_put_in_the_place_of_what_is_none() -> None:
    found = tp.compile(plain(jnp.nan_to_num), jnp.ones(2))(jnp.ones((1, 2)))
    assert abs(float(found.nngp[0, 0]) - 1) < 1e-6 and abs(float(found.ntk[0, 0]) - 2) < 1e-6  # float32
