"""Closed forms and paths in function space against networks of finite width, trained on their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import apps, nn
from tests.apps.common import data

WIDTH, NETWORKS = 512, 300


def uneven(x: Any) -> Any:
    """A hidden layer that moves slowly, a bias that moves fast, a frozen one."""
    n = nn.width()
    h = nn.weight((n, 3), tangent_std=0.3) @ x / np.sqrt(3) + nn.bias((n,), std=0.5, tangent_std=1.5)
    h = jax.scipy.special.erf(h + 0.4 * nn.bias((n,), train=False))
    return nn.weight((1, n), tangent_std=0.6) @ h / jnp.sqrt(n)


def classes(x: Any) -> Any:
    """Three outputs of a hidden layer."""
    return nn.dense(jax.scipy.special.erf(nn.dense(x, weight_var=2.0, bias_var=0.5)), features=3)


def trained(
    net: Any,
    points: jax.Array,
    cost: Callable[[jax.Array], jax.Array],
    rate: float,
    steps: int,
    speeds: Any,
    networks: int,
) -> np.ndarray:
    """The outputs at all points of many networks after gradient descent, each parameter at its own rate."""
    f = lambda p: jax.vmap(lambda one: tp.apply(net, p, one))(points)

    def train(key: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda p: cost(f(p)))
        move = lambda p: jax.tree.map(lambda a, g, s: a - rate * s**2 * g, p, gradient(p), speeds)
        return f(jax.lax.fori_loop(0, steps, lambda _, p: move(p), tp.init(net, points[0], WIDTH, key)))

    return np.asarray(jax.lax.map(jax.jit(train), jax.random.split(jax.random.key(0), networks)), float)


@pytest.mark.slow
def test_each_parameter_at_its_own_rate() -> None:
    """`tangent_std` is the rate: the mean over networks is that of the kernel, and not that of equal rates."""
    x, y, test = data(4, 2)
    points = jnp.asarray(np.concatenate([x, test]), jnp.float32)
    speeds = apps.speeds(uneven, points[0], WIDTH)
    assert sorted(speeds.values()) == [0.0, 0.3, 0.6, 1.5]
    kernel, steps = tp.compile(uneven, jnp.zeros(3)), 30
    training = apps.Training(kernel, x, y)
    rate = 0.3 * training.critical_rate()
    goal = jnp.asarray(y, jnp.float32)
    cost = lambda f: 0.5 * jnp.mean(jnp.square(f[:4, 0] - goal))
    found = trained(uneven, points, cost, rate, steps, speeds, NETWORKS)[..., 0]
    expected = training.descent(steps, rate, np.concatenate([x, test]))
    error = np.sqrt(np.diagonal(expected.covariance) / NETWORKS)
    bound = 4.5 * error + 5 / WIDTH  # the nonlinear part of a network of width n is of order 1/n in the mean
    assert (np.abs(found.mean(0) - expected.mean) < bound).all()
    np.testing.assert_allclose(np.cov(found.T), expected.covariance, atol=0.25 * expected.covariance.max())
    equal = trained(uneven, points, cost, rate, steps, jax.tree.map(lambda s: 1.0, speeds), 50)[..., 0]
    assert (np.abs(equal.mean(0) - expected.mean) > 2 * bound).any()


@pytest.mark.slow
def test_networks_held_to_where_they_began() -> None:
    """`GaussianProcess.trained`: gradient descent on |f - y|^2 + noise |theta - theta_0|^2, to its end (Hu, Li and Yu 2020)."""
    x, y, test = data(4, 2)
    points, noise, goal = jnp.asarray(np.concatenate([x, test]), jnp.float32), 0.4, jnp.asarray(y, jnp.float32)
    net = lambda x: nn.dense(jax.scipy.special.erf(nn.dense(x, weight_var=2.0, bias_var=0.5)), features=1)
    expected = apps.GaussianProcess(tp.compile(net, jnp.zeros(3)), x, y, noise=noise, get="ntk").trained(points)

    def train(key: jax.Array) -> jax.Array:
        begun = tp.init(net, points[0], WIDTH, key)
        f = lambda p: jax.vmap(lambda one: tp.apply(net, p, one))(points)[..., 0]

        def cost(p: Any) -> jax.Array:
            far = sum(
                jnp.sum(jnp.square(a - b)) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(begun), strict=True)
            )
            return 0.5 * (jnp.sum(jnp.square(f(p)[:4] - goal)) + noise * far)

        move = lambda p: jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(cost)(p))
        return f(jax.lax.fori_loop(0, 200, lambda _, p: move(p), begun))  # (1 - 0.1 noise)^200 is 3e-4

    found = np.asarray(jax.lax.map(jax.jit(train), jax.random.split(jax.random.key(1), NETWORKS)), float)
    error = np.sqrt(np.diagonal(expected.covariance) / NETWORKS)
    assert (np.abs(found.mean(0) - expected.mean) < 4.5 * error + 5 / WIDTH).all()
    np.testing.assert_allclose(np.cov(found.T), expected.covariance, atol=0.25 * expected.covariance.max())
    held = apps.GaussianProcess(tp.compile(net, jnp.zeros(3)), x, y, noise=1e-6, get="ntk").mean(points)
    assert (np.abs(found.mean(0) - held) > 4.5 * error + 10 / WIDTH).any()  # without the pull it is another mean


@pytest.mark.slow
def test_the_empirical_kernel_at_these_rates_is_near_the_limit() -> None:
    x, _, _ = data(4)
    points = jnp.asarray(x, jnp.float32)
    limit = np.asarray(tp.compile(uneven, jnp.zeros(3))(x).ntk)
    f, speeds = (lambda p, one: tp.apply(uneven, p, one)), apps.speeds(uneven, points[0], 4096)
    misses = []
    for seed in range(8):
        params = tp.init(uneven, points[0], 4096, jax.random.key(seed))
        misses.append(np.abs(np.asarray(apps.Empirical(f, params, speeds=speeds)(points, get="ntk")) - limit).max())
    assert np.mean(misses) < 0.05 * np.abs(limit).max()  # 1/sqrt(4096) of entries of order one, the largest of 16


@pytest.mark.slow
def test_cross_entropy() -> None:
    """One network at a time: its own path in function space, from its own values, with the kernel of the limit."""
    x, _, test = data(6, 2)
    labels = np.array([0, 1, 2, 0, 1, 2])
    points = jnp.asarray(np.concatenate([x, test]), jnp.float32)
    onehot = jnp.eye(3)[labels]
    cost = lambda f: -jnp.mean(jnp.sum(onehot * jax.nn.log_softmax(f[:6]), -1))
    rate, steps, networks = 0.1, 200, 4
    ones = apps.speeds(classes, points[0], WIDTH)
    found = trained(classes, points, cost, rate, steps, ones, networks)
    start = trained(classes, points, cost, rate, 0, ones, networks)
    kernel, misses = tp.compile(classes, jnp.zeros(3)), []
    for k in range(networks):
        descent = apps.FunctionalDescent(kernel, x, apps.cross_entropy(labels), f0=start[k, :6])
        path = descent.run([rate * steps])
        assert path.cost[0] < 0.8 * float(cost(start[k]))
        final = np.concatenate([path.values[0], descent.predict(path, test, f0_test=start[k, 6:])[0]])
        misses.append(np.abs(found[k] - final).max() / np.abs(final - start[k]).max())
    # the kernel of one network strays by about 1/sqrt(n), 4 percent; the worst entry of four networks by some times that
    assert max(misses) < 0.2


@pytest.mark.slow
def test_critical_rate_and_components_of_one_network() -> None:
    """Below the critical rate the cost of a wide network falls, above it grows; a component is learned in its number of steps."""
    x, _, _ = data(8)
    points = jnp.asarray(x, jnp.float32)
    net = lambda one: classes(one)[0]
    kernel = tp.compile(net, jnp.zeros(3))
    found = apps.learnability(kernel, x, np.ones(8))
    training = apps.Training(kernel, x, np.ones(8))
    params = tp.init(net, points[0], 4096, jax.random.key(0))
    f = jax.jit(lambda p: jax.vmap(lambda one: tp.apply(net, p, one))(points))
    start = np.asarray(f(params), float)

    def error_after(goal: np.ndarray, rate: float, steps: int) -> np.ndarray:
        target = jnp.asarray(goal, jnp.float32)
        gradient = jax.grad(lambda p: 0.5 * jnp.mean(jnp.square(f(p) - target)))
        move = lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, gradient(p))
        return np.asarray(f(jax.jit(lambda p: jax.lax.fori_loop(0, steps, move, p))(params)), float) - goal

    critical, first = training.critical_rate(), found.vectors[:, 0]
    goal = start + 0.1 * first
    assert abs(error_after(goal, 0.85 * critical, 30) @ first) < 0.01
    assert abs(error_after(goal, 1.15 * critical, 10) @ first) > 0.3  # its kernel is within 4 percent of the limit's
    third, steps = found.vectors[:, 2], round(found.steps[2])
    left = error_after(start + 0.1 * third, 0.5 * critical, steps) @ third / -0.1
    expected = (1 - found.eigenvalues[2] / found.eigenvalues[0]) ** steps  # 1/e for small steps
    assert abs(expected - np.exp(-1)) < 0.1 and abs(left - expected) < 0.08  # the kernel's 4 percent, in the exponent
