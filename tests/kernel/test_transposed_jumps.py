"""Jumps before a transpose: the coefficients of their Zdots, by Stein's form without derivatives.

Sampled networks stand in tests/finite_width/test_transposes.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import ArrayOp
from tensorprog.kernel.questions import Answer, Value
from tensorprog.kernel.rules import Rules
from tests.kernel.common import ONE, close, gaussian_mean, kernels, square, times, times_rows


@pytest.mark.slow
def test_a_jump() -> None:
    """E phi' in the sense of distributions: the coefficient of W' phi(W x) is E[u phi(u)] / E u^2."""

    def net(x: jax.Array) -> jax.Array:
        w = square()
        h = times(w, nn.dense(x, train=False))
        return nn.dense(times(w.T, jnp.where(h > 0.5, h + 1, jnp.sign(h))), features=1, train=False)

    variances = [0.3, 1.0, 4.0]
    found = np.diag(kernels(net, jnp.sqrt(jnp.array(variances))[:, None])[0])
    for q, value in zip(variances, found, strict=True):
        density = lambda u, q=q: mpmath.npdf(u, 0, mpmath.sqrt(q))
        phi = lambda u: u + 1 if u > 0.5 else mpmath.sign(u)
        moment = lambda f, density=density: mpmath.quad(
            lambda u: f(u) * density(u), [-mpmath.inf, 0, 0.5, 3, mpmath.inf]
        )
        slope = moment(lambda u, phi=phi: u * phi(u)) / q
        wanted = float(moment(lambda u, phi=phi: phi(u) ** 2) + slope**2 * q)
        close(value, wanted)


@pytest.mark.slow
def test_a_jump_of_two_variables() -> None:
    """W' phi(W h + h, h) has the overlap E[h^2] E[u phi(u + h, h)] / E[u^2] with h, u = W h: Stein's form, without a delta."""

    def net(x: jax.Array) -> jax.Array:
        w, h = nn.weight((nn.width(), nn.width()), train=False), nn.dense(x, train=False)
        u = times(w, h) + h
        back = times(w.T, jnp.where(u > 0.3, jnp.tanh(h) ** 2, -1.0))
        return nn.dense(h, features=1, train=False) * jnp.mean(h * back)

    q = 0.7
    density = lambda h: np.exp(-((0.3 - h) ** 2) / (2 * q)) / np.sqrt(2 * np.pi)
    inner = lambda h: np.sqrt(q) * (1 + np.tanh(h) ** 2) * density(h)  # E[u phi] for a given h
    overlap = gaussian_mean(lambda z: inner(np.sqrt(q) * z))
    close(kernels(net, ONE * np.sqrt(q))[0], [[q * overlap**2]])


@pytest.mark.slow
def test_a_jump_that_has_to_be_sampled() -> None:
    """E[u sign(u + t)] = 2 q N(t; 0, q), with t = tanh(g) + tanh(k) of two more Gaussians."""

    def net(x: jax.Array) -> jax.Array:
        h, (w, v, u) = nn.dense(x, train=False), (nn.weight((nn.width(), nn.width()), train=False) for _ in range(3))
        back = times(w.T, jnp.sign(times(w, h) + jnp.tanh(times(v, h)) + jnp.tanh(times(u, h))))
        return nn.dense(h, features=1, train=False) * jnp.mean(h * back)

    q = 0.7
    density = lambda t: np.exp(-(t**2) / (2 * q)) / np.sqrt(2 * np.pi * q)
    shifted = lambda g: gaussian_mean(lambda z: density(np.tanh(np.sqrt(q) * g)[:, None] + np.tanh(np.sqrt(q) * z)))
    kernel = tp.compile(net, ONE[0], tolerance=1e-2)
    assert kernel.sampled
    exact = q * (2 * q * gaussian_mean(shifted)) ** 2
    found, error = kernel(ONE * np.sqrt(q)).nngp[0, 0], kernel.standard_error(ONE * np.sqrt(q)).nngp[0, 0]
    assert 0 < error < 2e-2 * exact and abs(found - exact) < 5 * error  # the coefficient's error, twice


@pytest.mark.slow
def test_a_jump_at_positions_that_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pseudo-inverse over all places of the products that are mixed is what the delta functions give, place by place."""
    mix = jnp.array([[0.5, 0.5, 0.0], [-0.2, 0.7, 0.6], [0.3, 0.3, 0.3]])

    def net(x: jax.Array) -> jax.Array:
        h, w = nn.dense(x), nn.weight((nn.width(), nn.width()))
        return nn.dense(times_rows(jnp.sign(mix @ times_rows(h, w)), w.T).mean(0), features=1)

    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    wanted = tp.compile(net, x[0])(x)
    seen = []

    def second(self: Rules, node: ArrayOp) -> Answer:
        seen.append(node)
        return (yield Value(node.args[1]))

    monkeypatch.setattr(Rules, "_either", second)
    found = tp.compile(net, x[0])(x)
    assert seen
    for a, b in zip(found, wanted, strict=True):
        close(a, b)


@pytest.mark.long
def test_a_sampled_jump_at_positions_that_mix() -> None:
    """Within the error, of equal places and of many that are independent. Beside finite networks: tests/finite_width/test_transposes.py."""

    def net(x: jax.Array) -> jax.Array:
        h, (w, v) = nn.dense(x, train=False), (nn.weight((nn.width(), nn.width()), train=False) for _ in range(2))
        u, g = times_rows(h, w), times_rows(h, v)
        return nn.dense(times_rows(jnp.sign(u + jnp.tanh(u[::-1]) + jnp.tanh(g)), w.T).mean(0), features=1, train=False)

    # at 6 places that are all one, and at 6 that are independent; all variances are one
    x = np.stack([np.ones((6, 6)), np.eye(6) * np.sqrt(6)])
    kernel = tp.compile(net, x[0], tolerance=1e-2)
    found, error = (np.diag(of(x).nngp) for of in (kernel, kernel.standard_error))
    # sign(u + tanh u + tanh g), whose slope is E[2 delta] over u
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    root = [scipy.optimize.brentq(lambda u, g=g: u + np.tanh(u) + np.tanh(g), -3, 3) for g in points]
    density = np.exp(-np.square(root) / 2) / np.sqrt(2 * np.pi)
    slope = np.sum(weights * 2 * density) / np.sqrt(2 * np.pi)
    assert 0 < error[0] < 2e-2 and abs(found[0] - (1 + slope**2)) < 5 * error[0]
    # trapezoidal rules over u of a place and of its mirror image
    z = np.linspace(-9, 9, 361)
    u, other = np.meshgrid(z, z, indexing="ij")
    weights = np.outer(*[np.exp(-(z**2) / 2) * 0.05 / np.sqrt(2 * np.pi)] * 2)
    density = np.exp(-((np.tanh(u) + np.tanh(other)) ** 2) / 2) / np.sqrt(2 * np.pi)
    slope = np.sum(weights * 2 * density * (1 + 1 / np.cosh(u) ** 2))
    at = np.clip(u + np.tanh(other), -1 + 1e-16, 1 - 1e-16)
    sign = np.where(np.abs(at) < 1, 2 * scipy.special.ndtr(np.arctanh(at)) - 1, np.sign(at))
    exact = (1 + np.sum(weights * sign * sign.T) + slope**2) / 6
    assert 0 < error[1] < 1e-2 * exact and abs(found[1] - exact) < 5 * error[1]


def test_steps_of_vectors_that_coincide_or_are_opposite() -> None:
    """Zdot of a function with jumps, by Stein: C^+ E[h y] in the place of a derivative, C singular (Yang, TP III, remark on
    nonlinearities that are not differentiable)."""

    def net(x: jax.Array) -> jax.Array:
        n = nn.width()
        w = nn.weight((n, n))
        a = nn.dense(x)
        h = a @ w.T / jnp.sqrt(n)
        y = jnp.sign(h[0]) + jnp.where(h[1] > 0, 1.5, 0.0) + jnp.abs(h[0] + h[1])
        return nn.dense(w.T @ y / jnp.sqrt(n) + a[0], features=1)

    b = np.array([0.3, -1.2, 0.7])
    kernel = tp.compile(net, jnp.zeros((2, 3)))
    s = np.sqrt(np.mean(b**2))
    unit = 1 / np.sqrt(2 * np.pi)  # E relu(z)
    squares = {
        1: (2.5**2 + 1) / 2 + 2 * 2 * s * (2.5 - 1) * unit + 4 * s**2,  # y = sign h + 1.5 step h + 2 |h|
        -1: (1 + 0.5**2) / 2,  # y = sign h + 1.5 step(-h)
    }
    for sign, slope in ((1, 3.5 * unit / s), (-1, 0.5 * unit / s)):  # E[h y] / E[h^2]
        expected = squares[sign] + (s * (1 + slope)) ** 2
        # of opposite vectors, |h_0 + h_1| is the root of a variance that is rounding
        rtol = 1e-12 if sign > 0 else 1e-7
        np.testing.assert_allclose(kernel.diag(np.stack([b, sign * b])[None]).nngp[0], expected, rtol=rtol)
