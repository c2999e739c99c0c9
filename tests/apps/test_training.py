"""Training dynamics against plain iteration, matrix exponentials, an ODE solver, and trained finite networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import tensorprog as tp
from tensorprog import apps
from tests.apps.common import data, kernel, relu_gram, smooth


def matrices(seed: int = 0) -> dict[str, Any]:
    x, y, test = data(seed=seed)
    both = np.concatenate([x, test])
    nngp, ntk = (np.asarray(k) for k in kernel()(both))
    return dict(x=x, y=y, test=test, k=nngp, t=ntk, n=len(x))


def equations_14_and_15(m: dict, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Lee et al. 2019, as they stand there, with a matrix exponential and an inverse."""
    n = m["n"]
    inner, cross = m["t"][:n, :n], m["t"][n:, :n]
    a = cross @ np.linalg.inv(inner) @ (np.eye(n) - expm(-inner * time / n))
    k, kx, kt = m["k"][:n, :n], m["k"][n:, :n], m["k"][n:, n:]
    return a @ m["y"], kt + a @ k @ a.T - a @ kx.T - kx @ a.T


def test_kernel_is_the_formula() -> None:
    m = matrices()
    nngp, ntk = relu_gram(*[np.concatenate([m["x"], m["test"]])] * 2)
    np.testing.assert_allclose(m["t"], ntk, atol=1e-7)  # arccos near 1
    np.testing.assert_allclose(m["k"], nngp, atol=1e-7)


@pytest.mark.parametrize("time", [0.0, 0.3, 7.0, 500.0])
def test_flow_is_equations_14_to_16(time: float) -> None:
    m = matrices()
    training = apps.Training(kernel(), m["x"], m["y"])
    mean, covariance = equations_14_and_15(m, time)
    found = training.flow(time, m["test"])
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)  # the inverse here loses digits
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-9)
    # the training inputs as if they were test inputs
    again = training.flow(time, m["x"])
    inside = training.flow(time)
    np.testing.assert_allclose(inside.mean, again.mean, atol=1e-10)
    np.testing.assert_allclose(inside.covariance, again.covariance, atol=1e-10)


def test_many_times_and_infinity() -> None:
    m = matrices()
    training = apps.Training(kernel(), m["x"], np.stack([m["y"], -m["y"]], 1))
    found = training.flow([[0.0, 1.0], [2.0, np.inf]], m["test"])
    assert found.mean.shape == (2, 2, 5, 2) and found.covariance.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(found.mean[0, 1, :, 0], training.flow(1.0, m["test"]).mean[:, 0], atol=1e-12)
    n = m["n"]
    ridge = m["t"][n:, :n] @ np.linalg.solve(m["t"][:n, :n], m["y"])
    np.testing.assert_allclose(found.mean[1, 1], np.stack([ridge, -ridge], 1), atol=1e-9)
    np.testing.assert_allclose(training.flow(np.inf).mean[:, 0], m["y"], atol=1e-12)
    summed = apps.Training(kernel(), m["x"], m["y"], loss="sum").flow(1 / n, m["test"]).mean
    np.testing.assert_allclose(summed, found.mean[0, 1, :, 0], atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_descent_is_plain_iteration(momentum: float) -> None:
    m = matrices()
    n, rng = m["n"], np.random.default_rng(0)
    training = apps.Training(kernel(), m["x"], m["y"])
    rate = 0.4 * training.critical_rate(momentum)
    f0 = rng.standard_normal(len(m["t"]))
    f, v = f0.copy(), np.zeros(len(f0))
    for _ in range(37):
        v = momentum * v + m["t"][:, :n] @ (f[:n] - m["y"]) / n
        f = f - rate * v
    given = dict(momentum=momentum, f0=f0[:n], f0_test=f0[n:])
    found = training.descent([0, 37], rate, m["test"], **given)
    np.testing.assert_allclose(found.mean, [f0[n:], f[n:]], atol=1e-10)
    inside = training.descent(37, rate, momentum=momentum, f0=f0[:n])
    np.testing.assert_allclose(inside.mean, f[:n], atol=1e-10)
    assert found.covariance is None
    last = training.descent(np.inf, rate, m["test"], momentum=momentum)
    np.testing.assert_allclose(last.mean, training.flow(np.inf, m["test"]).mean, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_critical_rate(momentum: float) -> None:
    """Just below it the plain iteration decays, just above it grows."""
    m = matrices()
    n, y = m["n"], m["y"]
    training = apps.Training(kernel(), m["x"], y)
    sizes = []
    for factor in (0.98, 1.02):
        f, v = np.zeros(n), np.zeros(n)
        for _ in range(600):
            v = momentum * v + m["t"][:n, :n] @ (f - y) / n
            f = f - factor * training.critical_rate(momentum) * v
        sizes.append(np.abs(f - y).max())
    assert sizes[0] < np.abs(y).max() and sizes[1] > 10 * np.abs(y).max()
    with pytest.raises(tp.InputError, match="expected less than the critical rate"):
        training.descent(3, training.critical_rate(momentum), momentum=momentum)
    values = training.spectrum.values / n
    worst = lambda rate: np.abs(1 - rate * values).max()
    assert all(worst(training.fastest_rate()) <= worst(training.fastest_rate() * c) for c in (0.9, 0.999, 1.001, 1.1))


@pytest.mark.slow
def test_a_trained_network() -> None:
    """The mean over networks of width 512, trained by gradient descent with momentum, and their spread."""
    x, y, test = data(4, 2)
    training = apps.Training(kernel("smooth"), x, y)
    rate, momentum, steps = 0.3 * training.critical_rate(0.5), 0.5, 40
    points = jnp.asarray(np.concatenate([x, test]), jnp.float32)
    f = lambda p: jax.vmap(lambda one: tp.apply(smooth, p, one)[0])(points)

    def train(key: jax.Array) -> jax.Array:
        p = tp.init(smooth, points[0], 512, key)
        loss = lambda p: 0.5 * jnp.mean(jnp.square(f(p)[:4] - jnp.asarray(y)))

        def step(_: Any, state: Any) -> Any:
            p, v = state
            v = jax.tree.map(lambda a, g: momentum * a + g, v, jax.grad(loss)(p))
            return jax.tree.map(lambda a, g: a - rate * g, p, v), v

        return f(jax.lax.fori_loop(0, steps, step, (p, jax.tree.map(jnp.zeros_like, p)))[0])

    found = np.asarray(jax.lax.map(jax.jit(train), jax.random.split(jax.random.key(0), 400)))
    expected = training.descent(steps, rate, np.concatenate([x, test]), momentum=momentum)
    error = np.sqrt(np.diagonal(expected.covariance) / 400)
    # the nonlinear part of a network of width n is of order 1/n in the mean
    assert (np.abs(found.mean(0) - expected.mean) < 4.5 * error + 5 / 512).all()
    np.testing.assert_allclose(np.cov(found.T), expected.covariance, atol=0.25 * expected.covariance.max())


def test_functional_descent_of_the_square_loss_is_the_closed_form() -> None:
    x, y, test = data()
    rng = np.random.default_rng(1)
    f0, f0_test = rng.standard_normal(12), rng.standard_normal(5)
    descent = apps.FunctionalDescent(kernel(), x, apps.square_loss(y), f0=f0)
    times = [3.0, 0.0, 10.0]
    path = descent.run(times, tolerance=1e-10)
    closed = apps.Training(kernel(), x, y).flow(times, test, f0=f0, f0_test=f0_test)
    np.testing.assert_allclose(descent.predict(path, test, f0_test=f0_test), closed.mean, atol=1e-8)  # the solver's
    np.testing.assert_allclose(path.cost[1], 0.5 * np.mean((f0 - y) ** 2), rtol=1e-12)
    assert (path.slope < 0).all()


@pytest.mark.long
def test_early_stopping_along_a_path() -> None:
    """Of the square loss, where the closed form knows the times and losses."""
    x, y, _ = data(20, seed=3)
    noisy, (valid, truth, _) = y + 0.5 * np.random.default_rng(0).standard_normal(20), data(15, seed=4)
    times, start, begin = np.geomspace(0.1, 1e3, 25), np.zeros(20), np.zeros(15)
    descent = apps.FunctionalDescent(kernel(), x, apps.square_loss(noisy), f0=start)
    path = descent.run(times)
    found = descent.early_stopping(path, valid, apps.square_loss(truth), f0_test=begin)
    closed = apps.Training(kernel(), x, noisy).early_stopping(valid, truth, times, f0=start, f0_test=begin)
    assert found.time == closed.time
    np.testing.assert_allclose(2 * found.losses, closed.losses, rtol=1e-6)  # the solver's


@pytest.mark.long
def test_early_stopping_by_other_costs() -> None:
    x, y, _ = data(20, seed=3)
    valid, truth, _ = data(15, seed=4)
    descent, begin = apps.FunctionalDescent(kernel(), x, apps.square_loss(y), f0=np.zeros(20)), np.zeros(15)
    path = descent.run(np.geomspace(0.1, 1e3, 25))
    absolute = descent.early_stopping(path, valid, lambda f: jnp.abs(f - truth).max(), f0_test=begin)
    values = descent.predict(path, valid, f0_test=begin)
    np.testing.assert_allclose(absolute.losses, np.abs(values - truth).max(1), rtol=1e-12)
    wrong = descent.early_stopping(path, valid, lambda f: jnp.sum((f > 0) != (truth > 0)), f0_test=begin)  # a count
    np.testing.assert_array_equal(wrong.losses, ((values > 0) != (truth > 0)).sum(1))
    with pytest.raises(tp.InputError, match="one real number"):
        descent.early_stopping(path, valid, lambda f: f, f0_test=begin)
    with pytest.raises(tp.InputError, match="expected one finite number at each time"):
        descent.early_stopping(path, valid, lambda f: jnp.nan * f.sum(), f0_test=begin)


def test_functional_descent_of_cross_entropy() -> None:
    """Against scipy's solver on the values themselves, and the slope against differences of the cost."""
    x, _, _ = data(6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    ntk = np.asarray(kernel()(x).ntk)
    descent = apps.FunctionalDescent(kernel(), x, apps.cross_entropy(labels), f0=np.zeros((6, 3)))
    path = descent.run([4.0, 4.001], tolerance=1e-10)

    def field(t: float, f: np.ndarray) -> np.ndarray:
        e = np.exp(f.reshape(6, 3))
        return (-ntk @ (e / e.sum(1, keepdims=True) - np.eye(3)[labels]) / 6).ravel()

    expected = solve_ivp(field, (0, 4.0), np.zeros(18), rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1]
    np.testing.assert_allclose(path.values[0].ravel(), expected, atol=1e-7)  # both solvers'
    slope = (path.cost[1] - path.cost[0]) / 1e-3
    np.testing.assert_allclose(slope, path.slope.mean(), rtol=1e-5)


def test_singular_kernel_has_the_documented_limit() -> None:
    x, y, _ = data()
    twice, values = np.concatenate([x, x[:1]]), np.append(y, y[0] + 1.0)
    found = apps.Training(kernel(), twice, values).flow(np.inf)
    expected = values.copy()
    expected[[0, -1]] = values[[0, -1]].mean()  # the best that one input can do
    np.testing.assert_allclose(found.mean, expected, atol=1e-9)


def test_early_stopping() -> None:
    x, y, _ = data(30, seed=3)
    noisy = y + 0.5 * np.random.default_rng(0).standard_normal(30)
    valid, truth, _ = data(40, seed=4)
    times = np.geomspace(0.1, 1e5, 60)
    training = apps.Training(kernel(), x, noisy)
    found = training.early_stopping(valid, truth, times)
    losses = np.mean((training.flow(times, valid).mean - truth) ** 2, axis=1)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-12)
    assert found.time == times[losses.argmin()] and times[0] < found.time < times[-1]


def test_certificate() -> None:
    """A matrix with eigenvalues known exactly: proved lower bounds lie below, and close."""
    size = 40
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    for smallest in (1e-3, 1e-10, 0.0, -1e-3):
        values = np.linspace(1.0, 2.0, size)
        values[0] = smallest
        matrix = (basis * values) @ basis.T
        found = apps.certify(lambda a, b, get, m=(matrix + matrix.T) / 2: [m], np.zeros((size, 1)), entry_error=0.0)
        assert found.certified == (smallest > 1e-11) and found.smallest - found.error <= smallest + 1e-15
        assert found.error < 1e-12
        assert str(found).startswith("positive definite" if found.certified else "not certified")
    x, _, _ = data()
    assert apps.certify(kernel(), x).certified
    assert not apps.certify(kernel(), np.concatenate([x, x[:1]])).certified


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x: t.flow(-1.0), "t has -1.0, expected numbers >= 0"),
        (lambda t, x: t.flow(np.nan), "t has nan"),
        (lambda t, x: t.flow("soon"), "t is a str"),
        (lambda t, x: t.flow(1.0, x, f0=np.zeros(12)), "f0 and f0_test go together"),
        (lambda t, x: t.flow(1.0, f0_test=np.zeros(12)), "f0_test is given without test inputs"),
        (lambda t, x: t.flow(1.0, f0=np.zeros(3)), "f0 has shape (3,), expected (12,)"),
        (lambda t, x: t.flow(1.0, f0=np.zeros((12, 2))), "expected the same"),
        (lambda t, x: t.flow(1.0, np.zeros((2, 4))), "x1 has shape (2, 4), expected (N, 3)"),
        (lambda t, x: t.descent(1.5, 0.1), "steps is 1.5, expected whole numbers"),
        (lambda t, x: t.descent(2, -0.1), "rate is -0.1, expected a finite number > 0"),
        (lambda t, x: t.descent(2, 0.1, momentum=1.0), "momentum is 1.0, expected a number in [0, 1)"),
    ],
)
def test_nonsense(call: Any, message: str) -> None:
    x, y, _ = data()
    with pytest.raises(tp.InputError) as caught:
        call(apps.Training(kernel(), x, y), x)
    assert message in str(caught.value)


def test_nonsense_in_function_space() -> None:
    x, y, _ = data()
    with pytest.raises(tp.InputError, match="gives an array of shape"):
        apps.FunctionalDescent(kernel(), x, lambda f: f, f0=y)
    descent = apps.FunctionalDescent(kernel(), x, apps.square_loss(y), f0=y)
    with pytest.raises(tp.InputError, match="times is"):
        descent.run([1.0, -1.0])
    with pytest.raises(tp.InputError, match="labels has shape"):
        apps.cross_entropy([0.5, 1.0])
    with pytest.raises(tp.InputError, match="loss is 'median'"):
        apps.Training(kernel(), x, y, loss="median")
