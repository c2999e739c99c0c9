"""Approximate message passing: the Onsager term is the Zdot of a product, against state evolution."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.kernel.common import X, close, gaussian_mean, kernels, pairs, times
from tests.references import duals
from tests.test_finite_width import check as check_stages

erf = jax.scipy.special.erf


def spiked(steps: int, onsager: bool = True, train: bool = False) -> Callable:
    """x_{t+1} = W f(x_t) - E[f'(x_t)] f(x_{t-1}), W symmetric (Bolthausen 2014; Bayati and Montanari 2011)."""

    def net(x: jax.Array) -> jax.Array:
        w, h = nn.symmetric(nn.width(), train=train), nn.dense(x, train=train)
        before = None
        for _ in range(steps):
            f, slope = erf(h), jax.vmap(jax.grad(erf))(h)
            correct = onsager and before is not None
            h, before = times(w, f) - jnp.mean(slope) * before if correct else times(w, f), f
        return nn.dense(h, features=1, train=train)

    return net


def test_the_onsager_term_of_a_symmetric_matrix() -> None:
    """With it every iterate is Gaussian, with the covariance of state evolution; its like emerges where it is left out."""
    kernel = tp.compile(spiked(4), X[0])
    q = np.asarray(jnp.sum(X**2, -1)) / 2
    for _ in range(4):
        q = np.diag(duals.erf.value(*pairs(np.diag(q))))
    close(kernel.diag(X).nngp, q)
    page = kernel.derivation()
    dots = page[page.index("## Transposes") : page.index("## The Gaussian expectations")]
    assert dots.count("\\mathbb{E}\\left[") >= 3  # the Zdots are there ..
    assert "Moment" not in str(kernel.exposed_program)  # .. and none is left once the network has subtracted them
    assert "Moment" in str(tp.compile(spiked(3, onsager=False), X[0], tolerance=1e-2).exposed_program)


def sensing(steps: int, ratio: float = 0.5) -> Callable:
    """The error x_t - x of approximate message passing from y = A x (Donoho, Maleki and Montanari 2009), A of (ratio n, n)."""

    def net(x: jax.Array) -> jax.Array:
        m, n = nn.width(ratio), nn.width()
        a, signal = nn.weight((m, n), train=False) / jnp.sqrt(m), nn.dense(x, train=False)
        y = a @ signal
        residual, estimate = y, 0 * signal
        for _ in range(steps):
            field = a.T @ residual + estimate
            estimate = erf(field)
            onsager = jnp.mean(jax.vmap(jax.grad(erf))(field)) / ratio
            residual = y - a @ estimate + onsager * residual
        return nn.dense(estimate - signal, features=1, train=False)

    return net


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_onsager_term_of_a_rectangular_matrix(steps: int) -> None:
    """State evolution: the field is signal + N(0, tau^2), tau_{t+1}^2 = E[(erf(x + tau z) - x)^2] / ratio."""
    error = 1.0
    for _ in range(steps):
        root = np.sqrt(1 + error / 0.5)
        f = lambda z, root=root: np.vectorize(math.erf)(root * z)
        error = gaussian_mean(lambda z, f=f, root=root: f(z) ** 2 - 2 * f(z) * z / root) + 1
    close(kernels(sensing(steps))[0], [[error]])


@pytest.mark.long
def test_every_stage_at_finite_width() -> None:
    """Before the Zdots are written out message passing is the network, digit by digit."""
    check_stages(spiked(2, train=True), np.random.default_rng(0).normal(size=2))


@pytest.mark.slow
def test_message_passing_that_has_to_be_sampled() -> None:
    """The Onsager term brings earlier images back beside a Gaussian, so that the next function is one of several; its tangent meets
    plain Gaussian tangents."""

    def net(x: jax.Array) -> jax.Array:
        w, b = nn.weight((nn.width(), nn.width(2))) / jnp.sqrt(nn.width(2)), nn.dense(x)
        a = nn.weight((nn.width(2), 3)) @ x
        for _ in range(2):
            a = a + w.T @ (b - w @ jnp.tanh(a))
        return nn.weight((1, nn.width(2))) @ a / jnp.sqrt(nn.width(2))

    with pytest.raises(tp.UnsupportedError, match=r"what is not Gaussian itself[\s\S]*what a transpose brings back"):
        tp.compile(net, jnp.zeros(3))
    kernel = tp.compile(net, jnp.zeros(3), tolerance=1e-2)
    assert kernel.sampled
    assert jax.eval_shape(lambda x: kernel(x).ntk, jnp.ones((2, 3))).shape == (2, 2)  # traced; its values cost a minute
