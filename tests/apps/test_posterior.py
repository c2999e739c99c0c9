"""Gaussian-process regression against scipy, formulas by hand, and conditioned samples of wide networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.sklearn import NetworkClassifier
from tests.apps.common import data, kernel, relu_gram, smooth

NOISE = 0.05


def by_hand(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.linalg.inv(relu_gram(x, x)[0] + NOISE * np.eye(len(x)))
    cross = relu_gram(test, x)[0]
    return cross @ inverse @ y, relu_gram(test, test)[0] - cross @ inverse @ cross.T


def test_mean_and_covariance() -> None:
    x, y, test = data()
    gp = apps.GaussianProcess(kernel(), x, y, noise=NOISE)
    mean, covariance = by_hand(x, y, test)
    found = gp.predict(test)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10)
    np.testing.assert_allclose(gp.mean(test), mean, atol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-9)  # arccos near 1 keeps half the digits
    np.testing.assert_allclose(
        gp.predict(test, noisy=True).covariance - found.covariance, NOISE * np.eye(len(test)), atol=1e-12
    )


def test_float64_where_jax_runs_in_32_bits() -> None:
    x, y, test = data()
    with jax.enable_x64(False):
        found = apps.GaussianProcess(kernel(), x, y, noise=NOISE).predict(test)
    assert found.mean.dtype == np.float64
    np.testing.assert_allclose(found.mean, by_hand(x, y, test)[0], atol=1e-10)
    single = apps.GaussianProcess(kernel(), x, y, noise=NOISE, dtype=np.float32).predict(test)
    assert single.mean.dtype == np.float32
    np.testing.assert_allclose(single.mean, found.mean, atol=1e-4)  # 1e-7 times the condition number


def test_several_outputs_and_diag_reg() -> None:
    x, y, test = data()
    both = apps.GaussianProcess(kernel(), x, np.stack([y, 2 * y], 1), noise=0.0, diag_reg=1e-3)
    level = 1e-3 * float(np.mean(np.diagonal(kernel()(x).nngp)))
    one = apps.GaussianProcess(kernel(), x, y, noise=level)
    np.testing.assert_allclose(both.mean(test), np.stack([one.mean(test), 2 * one.mean(test)], 1), atol=1e-10)


@pytest.mark.parametrize("likelihood", [False, pytest.param(True, marks=pytest.mark.long)])
def test_output_axes(likelihood: bool) -> None:
    """A network with an output at every position: values of positions are correlated."""
    net = lambda x: nn.dense(jax.nn.relu(nn.conv(x, 3)), features=1)
    k = tp.compile(net, jnp.zeros((4, 2)))
    rng = np.random.default_rng(0)
    x, test = rng.standard_normal((3, 4, 2)), rng.standard_normal((2, 4, 2))
    y = rng.standard_normal((3, 4))
    gp = apps.GaussianProcess(k, x, y, noise=NOISE)
    found = gp.predict(test)
    full = np.asarray(k(np.concatenate([x, test])).nngp)  # (5, 5, 4, 4)
    entry = lambda i, p, j, q: full[i, j, p, q]
    train = [(i, p) for i in range(3) for p in range(4)]
    other = [(i, p) for i in range(3, 5) for p in range(4)]
    matrix = lambda a, b: np.array([[entry(*r, *c) for c in b] for r in a])
    inverse = np.linalg.inv(matrix(train, train) + NOISE * np.eye(12))
    np.testing.assert_allclose(found.mean.ravel(), matrix(other, train) @ inverse @ y.ravel(), atol=1e-10)
    expected = matrix(other, other) - matrix(other, train) @ inverse @ matrix(train, other)
    np.testing.assert_allclose(found.covariance.transpose(0, 2, 1, 3).reshape(8, 8), expected, atol=1e-10)
    law = lambda noise: multivariate_normal(cov=matrix(train, train) + noise * np.eye(12)).logpdf(y.ravel())
    np.testing.assert_allclose(gp.log_marginal_likelihood, law(NOISE), rtol=1e-10)
    if not likelihood:
        return
    value, gradient = apps.marginal_likelihood_gradient(k, x, y, noise=NOISE)
    np.testing.assert_allclose(value, law(NOISE), rtol=1e-10)
    np.testing.assert_allclose(gradient["noise"], (law(NOISE + 1e-6) - law(NOISE - 1e-6)) / 2e-6, rtol=1e-6)


def test_log_marginal_likelihood_and_gradient() -> None:
    x, y, _ = data()
    gp = apps.GaussianProcess(kernel(), x, y, noise=NOISE)
    covariance = relu_gram(x, x)[0] + NOISE * np.eye(len(x))
    expected = multivariate_normal(cov=covariance).logpdf(y)
    np.testing.assert_allclose(gp.log_marginal_likelihood, expected, rtol=1e-8)  # arccos on the diagonal
    value, gradient = apps.marginal_likelihood_gradient(kernel(), x, y, noise=NOISE)
    np.testing.assert_allclose(value, gp.log_marginal_likelihood, rtol=1e-10)
    step = 1e-4

    def at(w: float = 1.5, b: float = 0.3, noise: float = NOISE) -> float:
        return apps.GaussianProcess(kernel(), x, y, noise=noise, w=w, b=b).log_marginal_likelihood

    for name, centre in {"w": 1.5, "b": 0.3, "noise": NOISE}.items():
        slope = (at(**{name: centre + step}) - at(**{name: centre - step})) / (2 * step)
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-4)  # differences of step^2


@pytest.mark.slow
def test_samples_have_the_posterior_law() -> None:
    x, y, test = data()
    gp = apps.GaussianProcess(kernel(), x, y, noise=NOISE)
    draws, found = 20_000, gp.predict(test)
    sampled = gp.sample(test, jax.random.key(0), draws)
    assert sampled.shape == (draws, len(test))
    error = np.sqrt(np.diagonal(found.covariance) / draws)
    assert (np.abs(sampled.mean(0) - found.mean) < 4.5 * error).all()
    np.testing.assert_allclose(np.cov(sampled.T), found.covariance, atol=0.05 * found.covariance.max())


@pytest.mark.slow
def test_wide_networks_conditioned_on_data() -> None:
    """Importance-weighted draws of finite networks have the posterior mean, to their Monte Carlo error."""
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.standard_normal((3, 3)), jnp.float32)
    x, y, test, noise = points[:2], np.array([0.4, -0.3]), points[2:], 0.3
    draw = lambda key: jax.vmap(lambda p: tp.apply(smooth, tp.init(smooth, p, 256, key), p)[0])(points)
    f = np.asarray(jax.lax.map(jax.jit(draw), jax.random.split(jax.random.key(1), 3000), batch_size=100), float)
    logs = -0.5 * np.square(f[:, :2] - y).sum(1) / noise
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ f[:, 2]
    error = np.sqrt(np.sum(weights**2 * (f[:, 2] - mean) ** 2))
    expected = apps.GaussianProcess(kernel("smooth"), x, y, noise=noise).mean(test)[0]
    assert error < 0.03 and abs(mean - expected) < 4.5 * error + 1 / 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(4)}, "y has shape (4,), expected (12,) or (12, outputs)"),
        ({"y": np.full(12, np.nan)}, "y has nan at (0,), expected finite numbers"),
        ({"y": np.ma.masked_less(np.arange(12), 2)}, "y has nan at (0,)"),
        ({"x": np.ma.masked_less(np.ones((12, data()[0].shape[1])), 2)}, "x1 is a masked array"),
        ({"y": "twelve"}, "y is a str, expected an array of real numbers"),
        ({"noise": -1.0}, "noise is -1.0, expected a finite number >= 0"),
        ({"diag_reg": np.nan}, "diag_reg is nan, expected"),
        ({"kernel": 3}, "kernel is a int, expected what tp.compile or tp.load returns"),
        ({"dtype": np.int32}, "expected float32 or float64"),
        ({"w": -2.0}, "hyperparameter 'w' is -2.0"),
        ({"get": "cntk"}, "get is 'cntk', expected 'nngp' or 'ntk'"),
        ({"x": data()[0][[*range(11), 3]], "noise": 0.0}, "cannot tell training values 3 and 11 apart"),
    ],
)
def test_nonsense(change: dict, message: str) -> None:
    x, y, _ = data()
    given = dict(kernel=kernel(), x=x, y=y, noise=0.1) | change
    with pytest.raises(tp.InputError) as caught:
        apps.GaussianProcess(given.pop("kernel"), given.pop("x"), given.pop("y"), **given)
    assert message in str(caught.value)


def test_targets_beyond_all_likelihoods() -> None:
    """The density is below the least number then, not NaN; squares of float32 are summed in float64."""
    x, y, test = data()
    gp = apps.GaussianProcess(kernel(), x, 1e200 * y, noise=NOISE)
    assert gp.log_marginal_likelihood == -np.inf
    np.testing.assert_allclose(gp.mean(test) / 1e200, by_hand(x, y, test)[0], atol=1e-10)
    single, double = (
        apps.GaussianProcess(kernel(), x, 1e30 * y, noise=NOISE, dtype=d).log_marginal_likelihood
        for d in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single, double, rtol=1e-4)  # 1e-7 times the condition number


def test_singular_matrix_has_a_mend() -> None:
    linear = tp.compile(lambda x: nn.dense(nn.dense(x), features=1), jnp.zeros(2))
    x = np.random.default_rng(0).standard_normal((4, 2))
    with pytest.raises(tp.InputError, match="smallest eigenvalue"):
        apps.GaussianProcess(linear, x, np.ones(4), noise=0.0)
    apps.GaussianProcess(linear, x, np.ones(4), noise=0.0, diag_reg=1e-6)


def test_spread_of_trained_networks() -> None:
    """f0(x) + NTK(x, X) (NTK + noise)^-1 (y - f0(X)), a linear map of the Gaussian f0 at all points; without noise that of `Training`."""
    x, y, test = data()
    found = apps.GaussianProcess(kernel(), x, y, noise=0.3, get="ntk").trained(test)
    with jax.enable_x64(True):
        every = kernel()(np.concatenate([x, test]))
    k, t = np.asarray(every.nngp), np.asarray(every.ntk)
    n = len(x)
    moves = np.hstack([-t[n:, :n] @ np.linalg.inv(t[:n, :n] + 0.3 * np.eye(n)), np.eye(len(test))])
    np.testing.assert_allclose(found.covariance, moves @ k @ moves.T, atol=1e-12)
    np.testing.assert_allclose(found.mean, -moves[:, :n] @ y, atol=1e-12)
    end = apps.Training(kernel(), x, y).flow(np.inf, test)
    found = apps.GaussianProcess(kernel(), x, y, noise=1e-11, get="ntk").trained(test)
    np.testing.assert_allclose(found.covariance, end.covariance, atol=1e-8)
    with pytest.raises(tp.InputError, match="get is 'nngp', expected GaussianProcess"):
        apps.GaussianProcess(kernel(), x, y, noise=0.1).trained(test)


@pytest.mark.slow
def test_no_gradient_where_a_jump_is_sampled() -> None:
    """The slope of relu in a tangent kernel that is sampled: refused, by name; the NNGP kernel has its gradient."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x, weight_var=tp.hyper("w", 1.0))
        return nn.dense(jax.nn.relu(h + jax.nn.relu(h).mean(0)), features=1).sum()

    kernel, x = tp.compile(net, jnp.zeros((2, 3)), tolerance=5e-2), np.random.default_rng(0).standard_normal((2, 2, 3))
    value = lambda w: apps.marginal_likelihood_gradient(kernel, x, [1.0, 2.0], noise=0.1, w=w)
    wanted = (value(1.001)[0] - value(0.999)[0]) / 2e-3
    np.testing.assert_allclose(value(1.0)[1]["w"], wanted, rtol=1e-3)  # of a difference
    with pytest.raises(tp.UnsupportedError, match="no derivative in its hyperparameters"):
        apps.marginal_likelihood_gradient(kernel, x, [1.0, 2.0], noise=0.1, get="ntk")


def test_inputs_are_kept_as_they_were() -> None:
    """What a caller writes into his array afterwards changes nothing: predictions are those of the data that were seen."""
    x, y, test = data()
    ways = {
        "process": (
            lambda at: apps.GaussianProcess(kernel(), at, y, noise=0.1, get="ntk"),
            lambda made: [*made.predict(test), *made.trained(test)],
        ),
        "training": (lambda at: apps.Training(kernel(), at, y), lambda made: made.flow([1.0, np.inf], test)),
        "descent": (
            lambda at: apps.FunctionalDescent(kernel(), at, apps.square_loss(y), f0=np.zeros(len(y))),
            lambda made: [made.predict(made.run([1.0]), test, f0_test=np.zeros(len(test)))],
        ),
        "classifier": (
            lambda at: NetworkClassifier().fit(at, y > 0),
            lambda made: [made.decision_function(test)],
        ),
    }
    for name, (make, results) in ways.items():
        at = np.array(x)
        made = make(at)
        at[:] = 7.0
        for found, wanted in zip(results(made), results(make(x)), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12, err_msg=name)
