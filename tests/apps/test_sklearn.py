"""The scikit-learn kernel and classifier: against the compiled kernel, formulas by hand, and scikit-learn's own checks."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.sklearn import NetworkClassifier, NetworkKernel
from tests.apps.common import data, kernel, net, relu_gram


def made(**options: Any) -> NetworkKernel:
    return NetworkKernel(kernel(), np.zeros(3), **options)


@pytest.mark.long
def test_values_and_gradient() -> None:
    x, _, test = data()
    for index, get in enumerate(("nngp", "ntk")):
        k = made(get=get, w=1.2, b=0.4, b_bounds=(0.1, 2.0))
        matrix, gradient = k(x, eval_gradient=True)
        np.testing.assert_allclose(k(test, x), relu_gram(test, x, 1.2, 0.4)[index], atol=1e-10)
        assert matrix.flags.writeable and gradient.shape == (12, 12, 2)
        np.testing.assert_allclose(np.diagonal(matrix), k.diag(x), rtol=1e-10)
        for p in range(2):  # theta is (log b, log w)
            step = np.eye(2)[p] * 1e-5
            slope = (k.clone_with_theta(k.theta + step)(x) - k.clone_with_theta(k.theta - step)(x)) / 2e-5
            np.testing.assert_allclose(gradient[..., p], slope, atol=1e-7)  # differences
        np.testing.assert_allclose(k.bounds, np.log([[0.1, 2.0], [1e-5, 1e5]]))


def test_parameters_as_of_any_kernel() -> None:
    k = made(w=1.2, b_bounds="fixed")
    assert [h.name for h in k.hyperparameters] == ["b", "w"] and k.n_dims == 1
    np.testing.assert_allclose(k.theta, np.log([1.2]))
    other = clone(k)
    assert other is not k and other == k and other.compiled is k.compiled
    other.theta = np.log([2.0])
    assert other != k and k.get_params()["w"] == 1.2
    sum_of = ConstantKernel(2.0) * k + WhiteKernel(0.1)
    x, _, _ = data()
    np.testing.assert_allclose(sum_of(x), 2 * k(x) + 0.1 * np.eye(12), atol=1e-12)
    assert clone(sum_of) == sum_of and repr(k) == "NetworkKernel(nngp, b=0.3, w=1.2)"
    assert k != RBF() and not k.is_stationary()


def test_clones_of_a_network_are_not_compiled_anew() -> None:
    """A network as a function, not a kernel: its copies are equal, and share what it was compiled to."""
    k = NetworkKernel(net, np.zeros(3))
    for other in (clone(k), copy.deepcopy(k), copy.copy(k), k.clone_with_theta(k.theta)):
        assert other == k and other is not k and other.compiled is k.compiled


@pytest.mark.slow
def test_gaussian_process_regressor_finds_the_likeliest() -> None:
    x, y, test = data(20)
    k = made(w_bounds=(1e-2, 1e2), b_bounds=(1e-2, 1e2))
    model = GaussianProcessRegressor(k, alpha=0.05).fit(x, y)
    values = model.kernel_.get_params()
    own = apps.GaussianProcess(kernel(), x, y, noise=0.05, w=values["w"], b=values["b"])
    np.testing.assert_allclose(model.log_marginal_likelihood_value_, own.log_marginal_likelihood, rtol=1e-10)
    mean, covariance = model.predict(test, return_cov=True)
    np.testing.assert_allclose(mean, own.mean(test), atol=1e-9)
    np.testing.assert_allclose(covariance, own.predict(test).covariance, atol=1e-9)
    start = apps.GaussianProcess(kernel(), x, y, noise=0.05).log_marginal_likelihood
    assert own.log_marginal_likelihood > start + 0.1
    _, slopes = apps.marginal_likelihood_gradient(kernel(), x, y, noise=0.05, w=values["w"], b=values["b"])
    inside = [name for name in "wb" if 0.011 < values[name] < 99]
    assert inside and all(abs(slopes[name] * values[name]) < 1e-2 for name in inside)


def test_other_estimators_use_whole_matrices() -> None:
    x, y, test = data(20)
    k = made(get="ntk")
    ntk = lambda a, b: relu_gram(a, b)[1]
    ridge = KernelRidge(kernel=k, alpha=0.1).fit(x, y)
    expected = ntk(test, x) @ np.linalg.solve(ntk(x, x) + 0.1 * np.eye(20), y)
    np.testing.assert_allclose(ridge.predict(test), expected, atol=1e-6)  # arccos near 1 in the formula
    features = Nystroem(kernel=k, n_components=20, random_state=0).fit(x).transform(x)
    np.testing.assert_allclose(features @ features.T, k(x), atol=1e-8)  # all rows are kept, so it is exact
    parts = KernelPCA(n_components=3, kernel="precomputed").fit(k(x))
    np.testing.assert_allclose(KernelPCA(n_components=3, kernel=k).fit(x).eigenvalues_, parts.eigenvalues_, rtol=1e-10)
    labels = (y > 0).astype(int)
    svc, given = SVC(kernel=k).fit(x, labels), SVC(kernel="precomputed").fit(k(x), labels)
    np.testing.assert_allclose(svc.decision_function(test), given.decision_function(k(test, x)), atol=1e-8)


@pytest.mark.slow
def test_grid_search() -> None:
    x, y, _ = data(24)
    grid = {"kernel__w": [0.1, 1.5], "kernel__get": ["nngp", "ntk"], "alpha": [0.1]}
    search = GridSearchCV(KernelRidge(kernel=made()), grid, cv=3).fit(x, y)
    for k, params in enumerate(search.cv_results_["params"]):
        one = KernelRidge(kernel=made(get=params["kernel__get"], w=params["kernel__w"]), alpha=0.1)
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"][k], cross_val_score(one, x, y, cv=3).mean(), rtol=1e-8
        )


def test_images_are_reshaped() -> None:
    net = lambda x: nn.dense(nn.flatten(jax.nn.relu(nn.conv(x, 3))), features=1)
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 1))
    expected = tp.compile(net, jnp.zeros((3, 3, 1)))(x).nngp
    np.testing.assert_allclose(NetworkKernel(net, np.zeros((3, 3, 1)))(x.reshape(4, 9)), expected, atol=1e-12)


def test_fitted_again_a_classifier_forgets_what_it_was_given_before() -> None:
    x, y, _ = data()
    model = NetworkClassifier(kernel_net, alpha=1e-2, hyperparameters={"w": 5.0}).fit(x, y > 0)
    model.set_params(hyperparameters=None).fit(x, y > 0)
    fresh = NetworkClassifier(kernel_net, alpha=1e-2).fit(x, y > 0)
    np.testing.assert_array_equal(model.decision_function(x), fresh.decision_function(x))


def test_classifiers_of_a_compiled_kernel_are_cloned() -> None:
    """As cross-validation does; the compiled kernel is shared."""
    x, y, _ = data(12)
    kernel = tp.compile(kernel_net, x[0])
    model = NetworkClassifier(kernel, alpha=1e-2)
    assert clone(model).net is kernel
    np.testing.assert_array_equal(
        cross_val_score(model, x, y > 0, cv=2),
        cross_val_score(NetworkClassifier(kernel_net, alpha=1e-2), x, y > 0, cv=2),
    )


@pytest.mark.slow
def test_classifier_learns() -> None:
    x, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), NetworkClassifier(kernel_net, hyperparameters={"w": 2.0}, alpha=1e-2))
    assert cross_val_score(model, x, y, cv=3).mean() > 0.93
    labels = np.array(["setosa", "other"])[(y > 0).astype(int)]
    fitted = NetworkClassifier(kernel_net, alpha=1e-2).fit(x[::3], labels[::3])
    k = fitted.kernel_(x[::3])
    onehot = (labels[::3, None] == fitted.classes_) - 0.5
    weights = np.linalg.solve(k + 1e-2 * np.mean(np.diagonal(k)) * np.eye(len(k)), onehot)
    outputs = fitted.kernel_(x, x[::3]) @ weights
    np.testing.assert_allclose(fitted.decision_function(x), outputs[:, 1] - outputs[:, 0], atol=1e-9)
    assert (fitted.predict(x) == labels).mean() > 0.98


def kernel_net(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=0.1)), features=1)


@pytest.mark.slow
def test_estimator_checks() -> None:
    check_estimator(NetworkClassifier(alpha=1e-3), on_skip=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(v=1.0), "'v' is no hyperparameter of the network; it has: b, w"),
        (lambda: made(w="fixed"), "w is 'fixed', expected a finite number; what stays as it is is said by w_bounds"),
        (lambda: made()([["a", "b", "c"]]), "X is a list, expected (N, 3) real numbers"),
        (lambda: made()(np.zeros((2, 3), complex)), "X is a ndarray of complex128, expected (N, 3) real numbers"),
        (lambda: made(w_bounds=(5, 1)), "w_bounds is (5, 1), expected (low, high) with 0 < low <= high"),
        (lambda: made(w_bounds="fix"), "w_bounds is 'fix', expected (low, high)"),
        (lambda: made().set_params(w_bounds=3.0), "w_bounds is 3.0, expected (low, high)"),
        (lambda: made().set_params(get="both"), "get is 'both', expected 'nngp' or 'ntk'"),
        (lambda: made(get="both"), "get is 'both', expected 'nngp' or 'ntk'"),
        (lambda: made()(np.zeros((2, 4))), "X has shape (2, 4), expected (N, 3)"),
        (lambda: made()(np.zeros((2, 3)), np.zeros((2, 3)), eval_gradient=True), "only for Y None"),
        (lambda: made().set_params(net=1), "net cannot be changed"),
        (lambda: NetworkKernel(kernel(), (np.zeros(3), np.zeros(2))), "expected one array"),
        (lambda: NetworkKernel(kernel_net, np.zeros((3, 1)))(np.eye(3)), "the network's output has axes of shape (3,)"),
        (lambda: NetworkClassifier(alpha=-1.0).fit(np.eye(2), [0, 1]), "alpha is -1.0"),
        (lambda: NetworkClassifier().fit(np.eye(2), [1, 1]), "y has one class"),
    ],
)
def test_nonsense(make: Any, message: str) -> None:
    with pytest.raises(tp.InputError) as caught:
        make()
    assert message in str(caught.value)
