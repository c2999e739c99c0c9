"""A weight that some uses see behind lax.stop_gradient: one matrix for the law, of which the tangent kernel counts the other uses alone.

That its backward pass is that of JAX, digit by digit: tests/passes/test_adjoint.py.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tests import sampling
from tests.uncompiled import uncompiled

X = np.random.default_rng(0).standard_normal((2, 3))
stop = lax.stop_gradient
Net = Callable[[jax.Array, int], jax.Array]


def matrix() -> jax.Array:
    return nn.weight((nn.width(), nn.width()), name="w") / jnp.sqrt(nn.width())


def one_of_two(x: jax.Array, features: int = 1) -> jax.Array:
    w, h = matrix(), jnp.sin(nn.dense(x))
    g = jnp.sin(nn.dense(x, bias_var=1.0)) + h / 2
    return nn.dense(jnp.sin(w @ h + stop(w) @ g), features=features)


def transposed(x: jax.Array, features: int = 1) -> jax.Array:
    w = matrix()
    return nn.dense(w.T @ jnp.sin(stop(w) @ jnp.sin(nn.dense(x))), features=features)


def transposed_sum(x: jax.Array, features: int = 1) -> jax.Array:
    w = matrix()
    both = w - stop(w).T
    return nn.dense(both @ jnp.sin(both @ jnp.sin(nn.dense(x))), features=features)


def truncated(x: jax.Array, features: int = 1) -> jax.Array:
    """A recurrence that only the last step trains."""
    w, u = matrix(), nn.weight((nn.width(), 3))
    h = jnp.sin(u @ x)
    h = jnp.sin(stop(w) @ h + stop(u) @ x)
    return nn.dense(jnp.sin(w @ h + u @ x), features=features)


def symmetric(x: jax.Array, features: int = 1) -> jax.Array:
    w = nn.symmetric(nn.width()) / jnp.sqrt(nn.width())
    return nn.dense(stop(w) @ jnp.sin(w @ jnp.sin(nn.dense(x))), features=features)


def vector(x: jax.Array, features: int = 1) -> jax.Array:
    v, h = nn.weight((nn.width(),)), nn.dense(x)
    return nn.dense(jnp.sin(h + v) * stop(v), features=features)


def readout(x: jax.Array, features: int = 1) -> jax.Array:
    v, h = nn.weight((features, nn.width())), nn.dense(x)
    return (v @ jnp.sin(h) + stop(v) @ jnp.sin(nn.dense(x) + h)) / jnp.sqrt(nn.width())


NETS: dict[str, Net] = {
    net.__name__: net for net in (one_of_two, transposed, transposed_sum, truncated, symmetric, vector, readout)
}


@pytest.mark.parametrize("name", NETS)
def test_both_ways_agree(name: str) -> None:
    first, second = (uncompiled(tp.compile(NETS[name], X[0], method=way), X) for way in ("tangent", "adjoint"))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("name", NETS)
def test_the_law_is_that_of_the_weight(name: str) -> None:
    """The NNGP kernel knows of no training; the tangent kernel is another one."""
    stopped = uncompiled(tp.compile(NETS[name], X[0]), X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "stop", lambda w: w)
        free = uncompiled(tp.compile(lambda x: NETS[name](x, 1), X[0]), X)
    np.testing.assert_allclose(stopped.nngp, free.nngp, rtol=0, atol=1e-12 * np.abs(free.nngp).max())
    assert np.all(np.diag(stopped.ntk) < np.diag(free.ntk) - 0.05)


def test_in_closed_form() -> None:
    """y = W h + stop(W) g of frozen h and g = h / 2, so that E y y' = (9/4) E h h': the readout has E sin sin, W has E cos cos E h h'."""

    def net(x: jax.Array) -> jax.Array:
        w, h = matrix(), jnp.sin(nn.dense(x, train=False))
        return nn.dense(jnp.sin(w @ h + stop(w) @ h / 2), features=1)

    wave = lambda c, sign: np.exp(-(np.diag(c)[:, None] + np.diag(c)) / 2) * (np.exp(c) + sign * np.exp(-c)) / 2
    below = wave(X @ X.T / 3, -1)
    above = 9 / 4 * below
    np.testing.assert_allclose(
        uncompiled(tp.compile(net, X[0]), X).ntk, wave(above, -1) + wave(above, 1) * below, rtol=1e-12
    )


def test_text_and_derivation() -> None:
    """The program says which use is stopped, and the page shows one matrix."""
    kernel = tp.compile(one_of_two, X[0], method="adjoint")
    assert "stopped=1.0" in str(kernel.program) and tp.parse_program(str(kernel.program)) == kernel.program
    assert "stopped=" not in str(kernel.exposed_program)
    page = str(kernel.derivation())
    assert page.count("| $W^{\\text{w}}$ |") == 1 and "= ?" not in page


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_at_finite_width(name: str) -> None:
    limit = uncompiled(tp.compile(NETS[name], X[0]), X)
    net = lambda nn, x, features: NETS[name](x, features)
    sampling.check(
        sampling.tensorprog_network(net, X),
        (limit.nngp, limit.ntk),
        (32, 64, 128, 256),
        (4096, 2048, 1024, 512),
        resolution=0.03,
    )
