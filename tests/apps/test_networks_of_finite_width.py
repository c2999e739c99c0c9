"""Likelihoods, posteriors, gradient flow, early stopping, spectra and shaped activations against sampled and trained networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import apps, nn
from tests.apps.common import data, kernel, net, smooth

WIDTH = 512
NOISE = 0.3


def values(net: Callable, width: int, points: Any, keys: jax.Array, **hypers: Any) -> jax.Array:
    """The first output of one network for each key, at all points."""
    x = jnp.asarray(points, jnp.float32)

    def one(key: jax.Array) -> jax.Array:
        params = tp.init(net, x[0], width, key)
        return jax.vmap(lambda p: tp.apply(net, params, p, **hypers)[0])(x)

    return jax.lax.map(one, keys, batch_size=min(4000, len(keys)))


@pytest.mark.long
def test_likelihood_is_the_mean_over_networks() -> None:
    """p(y) = E N(y; f, noise), of networks of width 128, and its derivatives, those of the same mean: no kernel in it."""
    x, y = data()[0][:3], np.array([0.5, -0.4, 0.2])
    keys = jax.random.split(jax.random.key(0), 4000)

    @jax.jit
    def density(named: dict[str, jax.Array]) -> jax.Array:
        given = dict(named)
        noise = given.pop("noise")
        misses = jnp.square(values(net, 128, x, keys, **given) - y).sum(1)
        return jnp.exp(-0.5 * misses / noise) / (2 * jnp.pi * noise) ** 1.5

    named = {"w": jnp.asarray(1.5), "b": jnp.asarray(0.3), "noise": jnp.asarray(NOISE)}
    each, slopes = density(named), jax.jit(jax.jacfwd(density))(named)
    value, gradient = apps.marginal_likelihood_gradient(kernel(), x, y, noise=NOISE)
    mean = float(each.mean())
    assert float(each.std()) / mean / np.sqrt(len(keys)) < 0.02  # so 4.5 of them see an error of 9 percent
    assert abs(np.log(mean) - value) < 4.5 * float(each.std()) / mean / np.sqrt(len(keys)) + 1 / 128
    assert sorted(gradient) == sorted(named)
    for name, slope in gradient.items():
        score = np.asarray(slopes[name] - each * (slopes[name].mean() / mean)) / mean
        error = score.std() / np.sqrt(len(keys))
        assert abs(float(slopes[name].mean()) / mean - slope) < 4.5 * error + 0.02 * abs(slope) and error < 0.2


@pytest.mark.slow
def test_posterior_samples_are_networks_conditioned_on_data() -> None:
    """Importance-weighted draws of networks of width 256, and draws from the posterior: means, variances, covariances."""
    points = data()[0][:5]
    x, y, test = points[:3], np.array([0.5, -0.4, 0.2]), points[3:]
    f = np.asarray(values(net, 256, points, jax.random.split(jax.random.key(1), 40_000)), float)
    logs = -0.5 * np.square(f[:, :3] - y).sum(1) / NOISE
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    effective = 1 / np.square(weights).sum()
    assert effective > 5000
    mean = weights @ f[:, 3:]
    covariance = (weights[:, None] * (f[:, 3:] - mean)).T @ (f[:, 3:] - mean)
    drawn = apps.GaussianProcess(kernel(), x, y, noise=NOISE).sample(test, jax.random.key(2), 40_000)
    error = np.sqrt(np.diagonal(covariance) * (1 / effective + 1 / 40_000))
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * error + 1 / 256).all()
    scale = np.diagonal(covariance).max()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=(4.5 * np.sqrt(2 / effective) + 2 / 256) * scale)


def paths(cost: Callable, points: np.ndarray, rate: float, at: Any, keys: jax.Array, sign: float = 1.0) -> np.ndarray:
    """(networks, times, points): the outputs of networks `smooth` in gradient descent on a cost of their values, after the steps `at`.

    sign: of the last layer at the start, whose law it does not change.
    """
    x, at = jnp.asarray(points, jnp.float32), np.asarray(at)
    f = lambda p: jax.vmap(lambda one: tp.apply(smooth, p, one)[0])(x)

    def train(key: jax.Array) -> jax.Array:
        p = tp.init(smooth, x[0], WIDTH, key)
        for name in ("dense_1.weight", "dense_1.bias"):
            p[name] = sign * p[name]
        gradient = jax.grad(lambda p: cost(f(p)))
        step = lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, gradient(p))

        def until(p: Any, steps: jax.Array) -> Any:
            p = jax.lax.fori_loop(0, steps, step, p)
            return p, f(p)

        return jax.lax.scan(until, p, jnp.asarray(np.diff(at, prepend=0)))[1]

    return np.asarray(jax.lax.map(jax.jit(train), keys), float)


def square(y: np.ndarray) -> Callable:
    goal = jnp.asarray(y, jnp.float32)
    return lambda f: 0.5 * jnp.mean(jnp.square(f[: len(y)] - goal))


@pytest.mark.slow
def test_gradient_flow_at_many_times() -> None:
    """Means, covariances, and single networks from their own values, at training and test inputs, from the start to the end."""
    x, y, test = data(4, 2)
    points = np.concatenate([x, test])
    training = apps.Training(kernel("smooth"), x, y)
    rate, at = (
        0.04 * training.critical_rate(),
        np.array([0, 10, 60, 400, 3000]),
    )  # near to flow: steps of a 12th of the fastest time
    found = paths(square(y), points, rate, at, jax.random.split(jax.random.key(0), 200))
    expected = training.flow(rate * at, points)
    error = np.sqrt(np.diagonal(expected.covariance, axis1=1, axis2=2) / 200)
    assert (np.abs(found.mean(0) - expected.mean) < 4.5 * error + 10 / WIDTH).all()
    for k in range(len(at)):
        spread = np.cov(found[:, k].T)
        np.testing.assert_allclose(spread, expected.covariance[k], atol=0.25 * expected.covariance[k].max() + 2 / WIDTH)
    own = [training.flow(rate * at, test, f0=one[0, :4], f0_test=one[0, 4:]).mean for one in found[:20]]
    misses = np.abs(found[:20, :, 4:] - own)
    moved = np.abs(np.asarray(own) - found[:20, :1, 4:]).max()
    assert misses[:, 0].max() == 0 and misses.max() < 0.25 * moved and np.median(misses[:, -1]) < 0.06 * moved
    whole = training.flow(np.inf, points)
    np.testing.assert_allclose(
        found[:, -1, :4].mean(0), whole.mean[:4], atol=0.05
    )  # 3,000 steps leave this of the last component


@pytest.mark.slow
def test_early_stopping_of_trained_networks() -> None:
    """The validation loss of the mean of 64 networks, and of each network itself, along their training on noisy data."""
    x, y, _ = data(20, seed=3)
    noisy, (valid, truth, _) = y + 0.8 * np.random.default_rng(0).standard_normal(20), data(15, seed=4)
    training = apps.Training(kernel("smooth"), x, noisy)
    rate = 0.1 * training.critical_rate()
    at = np.unique(np.round(np.geomspace(4, 1500, 12)).astype(int))
    points, keys = np.concatenate([x, valid]), jax.random.split(jax.random.key(0), 32)
    found = [
        paths(square(noisy), points, rate, [0, *at], keys, sign) for sign in (1.0, -1.0)
    ]  # the mean at the start is zero
    losses = np.square(np.mean(found, (0, 1))[1:, 20:] - truth).mean(1)
    stop = training.early_stopping(valid, truth, rate * at)
    np.testing.assert_allclose(losses, stop.losses, rtol=0.06)
    assert 0 < stop.losses.argmin() < len(at) - 1 and abs(int(losses.argmin()) - int(stop.losses.argmin())) <= 1
    better = 0
    for one in found[0][:16]:
        own = np.square(one[1:, 20:] - truth).mean(1)
        at_own = training.early_stopping(valid, truth, rate * at, f0=one[0, :20], f0_test=one[0, 20:])
        np.testing.assert_allclose(own, at_own.losses, rtol=0.35)  # one kernel of width 512 strays by several percent
        better += own[at_own.losses.argmin()] < 1.05 * own.min()
    assert better >= 14


def log_cosh(y: np.ndarray) -> Callable:
    goal = jnp.asarray(y)
    return lambda f: jnp.mean(jnp.logaddexp(3 * (f[: len(y)] - goal), -3 * (f[: len(y)] - goal)))


@pytest.mark.slow
def test_descent_on_a_cost_of_ones_own() -> None:
    """Values, and the fall of the cost with its rate, of trained networks along a robust cost; early stopping on another one."""
    x, y, test = data(6, 3)
    points = np.concatenate([x, test])
    rate, at = 0.02, np.array([0, 20, 21, 150, 600])
    found = paths(log_cosh(y), points, rate, at, jax.random.split(jax.random.key(3), 8))
    for one in found:
        descent = apps.FunctionalDescent(kernel("smooth"), x, log_cosh(y), f0=one[0, :6])
        path = descent.run(rate * at)
        expected = np.concatenate([path.values, descent.predict(path, test, f0_test=one[0, 6:])], 1)
        assert np.abs(one - expected).max() < 0.15 * np.abs(expected - expected[0]).max()
        costs = np.array([float(log_cosh(y)(f[:6])) for f in one])
        # the kernel of a network strays by several percent, and a cost that falls steeply with it by more of what is left
        np.testing.assert_allclose(costs, path.cost, atol=0.03 * costs[0])
        np.testing.assert_allclose((costs[2] - costs[1]) / rate, path.slope[1:3].mean(), rtol=0.2)


@pytest.mark.slow
def test_spectra_of_finite_networks() -> None:
    """Of the mean empirical tangent kernel at width 1,024: extreme eigenvalues, condition number, dimension, times of components."""
    x, y, _ = data(6)
    points = jnp.asarray(x, jnp.float32)
    found = apps.spectra(kernel(), x, w=[0.6, 2.5], b=0.3)
    for k, w in enumerate((0.6, 2.5)):
        f = lambda p, one, w=w: tp.apply(net, p, one, w=w)[0]
        params = [tp.init(net, points[0], 1024, key) for key in jax.random.split(jax.random.key(k), 12)]
        each = np.array([apps.Empirical(f, p)(points, get="ntk") for p in params], float)
        rows = np.linalg.eigvalsh(each.mean(0))
        spread = np.abs(each - each.mean(0)).mean(0).max() / np.sqrt(12)
        assert abs(rows[0] - found.smallest[k]) < 5 * spread and abs(rows[-1] - found.largest[k]) < 6 * 5 * spread
        np.testing.assert_allclose(rows[-1] / rows[0], found.condition[k], rtol=0.1)
        level = 1e-3 * rows.mean()
        np.testing.assert_allclose(np.sum(rows / (rows + level)), found.effective_dimension[k], rtol=1e-3)
        learned = apps.learnability(kernel(), x, y, w=w, b=0.3)
        np.testing.assert_allclose(len(x) / rows[::-1], learned.times, rtol=0.1)


@cache
def shaped() -> apps.Shaped:
    return apps.shape_activation(jnp.tanh, slope=1.08)


@pytest.mark.slow
def test_shaped_networks_keep_their_variance() -> None:
    """Twelve layers of width 512: the variance stays 1, the correlation of two inputs goes as its map says; without shaping both are lost."""
    n, depth, c = 512, 12, 0.2
    x = np.array([[1.0, 0.0], [c, np.sqrt(1 - c * c)]]) * np.sqrt(2)

    @jax.jit
    def gram(key: jax.Array) -> jax.Array:
        h = jnp.asarray(x, jnp.float32).T
        first, *keys = jax.random.split(key, depth + 1)
        h = jax.random.normal(first, (n, 2), jnp.float32) @ h / np.sqrt(2)
        for k in keys:
            h = jax.random.normal(k, (n, n), jnp.float32) @ shaped().activation(jnp.tanh)(h) / np.sqrt(n)
        return h.T @ h / n

    found = np.array([gram(key) for key in jax.random.split(jax.random.key(0), 128)], float)
    block = apps.Block(lambda h: nn.dense(shaped().activation(jnp.tanh)(h)))
    path = block.trajectory(c, 1.0, depth)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    expected = np.array([[1.0, path[-1].prod()], [path[-1].prod(), 1.0]])
    assert (np.abs(found.mean(0) - expected) < 4.5 * error + 0.01).all() and error.max() < 0.03
    plain = apps.Block(lambda h: nn.dense(jnp.tanh(h))).trajectory(c, 1.0, depth)
    assert plain[-1, 0] < 0.1 and abs(path[-1, 0] - 1) < 1e-8
