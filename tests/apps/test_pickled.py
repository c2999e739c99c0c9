"""What stands on a kernel is pickled with it: what was fitted predicts the same afterwards, bit by bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.sklearn import NetworkClassifier, NetworkKernel
from tests.apps.common import data, kernel, net

X, Y, TEST = data(12, 3)


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def copies(value: Any) -> list[Any]:
    return [again(value), copy.deepcopy(value)]


@pytest.mark.long
def test_gaussian_process() -> None:
    process = apps.GaussianProcess(kernel(), jnp.asarray(X), np.stack([Y, -Y], 1), noise=0.1, get="ntk", w=1.2)
    want, key = process.predict(TEST), jax.random.key(0)
    for back in copies(process):
        for a, b in zip(back.predict(TEST), want, strict=True):
            np.testing.assert_array_equal(a, b)
        assert back.log_marginal_likelihood == process.log_marginal_likelihood
        np.testing.assert_array_equal(back.sample(TEST, key, 2), process.sample(TEST, key, 2))
        np.testing.assert_array_equal(back.trained(TEST).covariance, process.trained(TEST).covariance)


def test_arrays_of_jax_are_not_rounded() -> None:
    """A pickle of a JAX array gives one of 32 bits where JAX runs in these."""
    process = apps.GaussianProcess(kernel(), jnp.asarray(X), Y, noise=0.1, w=jnp.asarray(1.1))
    written = pickle.dumps(process)
    with jax.enable_x64(False):
        back = pickle.loads(written)
    np.testing.assert_array_equal(back.mean(TEST), process.mean(TEST))


def test_training() -> None:
    training = apps.Training(kernel(), X, Y)
    for back in copies(training):
        np.testing.assert_array_equal(back.flow([0.5, np.inf], TEST).mean, training.flow([0.5, np.inf], TEST).mean)


@pytest.mark.long
@pytest.mark.parametrize("cost", [apps.square_loss(np.eye(3)), apps.cross_entropy(np.arange(3))])
def test_descent(cost: Any) -> None:
    descent = apps.FunctionalDescent(kernel(), X[:3], cost, f0=np.zeros((3, 3)))
    np.testing.assert_array_equal(again(descent).run([1.0]).values, descent.run([1.0]).values)


def linear(params: Any, x: Any) -> Any:
    return params @ x


def test_empirical() -> None:
    empirical = apps.Empirical(linear, jnp.asarray(X[:2]), speeds=2.0)
    for back in copies(empirical):
        np.testing.assert_array_equal(back(TEST).ntk, empirical(TEST).ntk)


def deep(x: Any) -> Any:
    for _ in range(4):
        x = jax.nn.relu(nn.dense(x, weight_var=1.9, bias_var=0.1))
    return nn.dense(x, features=1)


@pytest.mark.long
def test_layers() -> None:
    layers = apps.Layers(deep, jnp.zeros(3))
    back = again(layers)
    assert repr(back) == repr(layers)
    np.testing.assert_array_equal(back.trajectory(X[0], X[1], 7), layers.trajectory(X[0], X[1], 7))


def test_scikit_learn() -> None:
    own = NetworkKernel(net, np.zeros(3), w=jnp.asarray(1.2), w_bounds="fixed")
    fitted = NetworkClassifier(kernel(), alpha=1e-2).fit(X, Y > 0)
    for made in (again, copy.deepcopy, clone):
        back = made(own)
        np.testing.assert_array_equal(back(X, TEST), own(X, TEST))
        assert back.get_params()["w_bounds"] == "fixed" and back.net is net
    np.testing.assert_array_equal(again(fitted).decision_function(TEST), fitted.decision_function(TEST))
    clone(again(fitted)).fit(X, Y > 0)


@pytest.mark.slow
@pytest.mark.parametrize("net", [net, kernel()], ids=["function", "kernel"])
def test_a_search_in_several_processes(net: Any) -> None:
    grid = {"kernel__w": [0.1, 1.5], "alpha": [0.1]}
    found = [
        GridSearchCV(KernelRidge(kernel=NetworkKernel(net, np.zeros(3))), grid, cv=2, n_jobs=jobs).fit(X, Y)
        for jobs in (1, 2)
    ]
    one, two = (search.cv_results_["mean_test_score"] for search in found)
    np.testing.assert_allclose(two, one, rtol=1e-10)  # threads of other numbers may sum in other orders
    np.testing.assert_allclose(found[1].predict(TEST), found[0].predict(TEST), rtol=1e-10)


def test_a_kernel_with_a_function_of_no_module() -> None:
    """The kernel goes without its network; where a network itself is held, Python says which function has no name."""
    assert again(tp.compile(lambda x: nn.dense(x, features=1), jnp.zeros(2))).model is None
