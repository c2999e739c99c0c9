"""What no function of `apps` may take in silence: shapes that do not match, NaN, negative times, things of another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import apps
from tests.apps.common import data, kernel, net

X, Y, TEST = data(6, 2)
NAN = np.full(6, np.nan)
HOLE = np.where(np.eye(6, 3) > 0, np.nan, X)
KEY = jax.random.key(0)
PARAMS = {"a": np.ones((2, 3))}


def linear(p: Any, x: Any) -> Any:
    return p["a"] @ x


def process(x: Any = X, y: Any = Y, noise: Any = 0.1, **options: Any) -> apps.GaussianProcess:
    return apps.GaussianProcess(kernel(), x, y, noise=noise, **options)


def training() -> apps.Training:
    return apps.Training(kernel(), X, Y)


def descent(cost: Any = None) -> apps.FunctionalDescent:
    return apps.FunctionalDescent(kernel(), X, cost or apps.square_loss(Y), f0=np.zeros(6))


CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: apps.GaussianProcess(kernel(), HOLE, Y, noise=0.1), "nan"),
    (lambda: apps.GaussianProcess(kernel(), X, Y + 1j, noise=0.1), "expected an array of real numbers"),
    (lambda: apps.GaussianProcess(kernel(), X, Y, noise=np.ones(6)), "expected a finite number >= 0"),
    (lambda: apps.GaussianProcess(kernel(), None, Y, noise=0.1), "x"),
    (lambda: process(noise="0.1"), "noise is '0.1', expected a finite number >= 0"),
    (lambda: process(noise=b"1"), "noise is b'1', expected a finite number >= 0"),
    (lambda: process(noise=True), "noise is True, expected a finite number >= 0"),
    (lambda: process(diag_reg=np.True_), "diag_reg is np.True_, expected a finite number >= 0"),
    (lambda: process(w="1.5"), "hyperparameter 'w' is '1.5', expected a finite number >= 0"),
    (lambda: process(w=True), "hyperparameter 'w' is True, expected a finite number >= 0"),
    (lambda: process(dtype="foo"), "dtype is 'foo', expected float32 or float64"),
    (lambda: process(dtype=np.float16), "dtype is <class 'numpy.float16'>, expected float32"),
    (lambda: process(noise=1e300, dtype=np.float32), "kernel: 1e+300 is added to the diagonal (noise is 1e+300, diag_reg or alpha 0.0)"),
    (lambda: process(diag_reg=1e308, noise=1e308), "more than float64 holds"),
    (lambda: process(y=1e40 * np.ones(6), dtype=np.float32), "y has 1e+40 at (0,), more than float32 holds"),
    (lambda: process(x=1e40 * X, dtype=np.float32), "more than float32 holds"),
    (lambda: process(y=["1"] * 6), "y is a list of <U1, expected an array of real numbers"),
    (lambda: process(y=np.array(["1"] * 6, object)), "y is a ndarray of object, expected an array of real numbers"),
    (lambda: process(y=np.ma.masked_array(Y + 1j, Y > 0)), "y is a MaskedArray of complex128, expected an array of real"),
    (lambda: process(get=("nngp", "ntk")), "GaussianProcess: get is ('nngp', 'ntk'), expected 'nngp' or 'ntk'"),
    (lambda: apps.log_marginal_likelihood(kernel(), X, Y, noise="0.1"), "noise is '0.1', expected a number"),
    (lambda: apps.log_marginal_likelihood(kernel(), X, Y + 1j, noise=0.1), "y is a ndarray of complex128"),
    (lambda: apps.marginal_likelihood_gradient(kernel(), X, 1e200 * Y, noise=0.1), "too unlikely for a number of float64"),
    (lambda: process().mean(TEST[:, :2]), "x1 has shape (2, 2), expected (N, 3)"),
    (lambda: process().sample(TEST, 3, 2), "sample: key is a int, expected one JAX random key"),
    (lambda: process().sample(TEST, KEY, True), "sample: draws is True, expected a whole number >= 1"),
    (lambda: apps.marginal_likelihood_gradient(kernel(), X, NAN, noise=0.1), "y has nan"),
    (lambda: apps.log_marginal_likelihood(kernel(), X, Y[:4], noise=0.1), "y has shape (4,), expected (6,)"),
    (lambda: apps.Training(kernel(), X, NAN), "y has nan"),
    (lambda: apps.Training(lambda *a, **b: None, X, Y), "it returned 1 results of shapes [()], expected 2"),
    (lambda: apps.Training(lambda a, b, get: [np.tri(6)] * 2, X, Y), "expected a symmetric matrix"),
    (lambda: apps.Training(net, X, Y), "kernel is the function 'net', which does not take get=.., as a kernel is called"),
    (lambda: apps.GaussianProcess(lambda x: x, X, Y, noise=0.1), "if it is a network, compile it first"),
    (lambda: training().flow(1j), "t is a complex"),
    (lambda: training().flow(1.0, f0=NAN), "f0 has nan"),
    (lambda: training().early_stopping(TEST, Y[:2], []), "0 times and 2 validation inputs"),
    (lambda: training().early_stopping(TEST[:0], Y[:0], [1.0]), "1 times and 0 validation inputs"),
    (lambda: training().early_stopping(TEST, Y[:2], [-1.0]), "times has -1.0"),
    (lambda: descent(apps.square_loss(Y[:3])), "y has shape (3,), but f has (6,)"),
    (lambda: descent(apps.square_loss(Y[:, None])), "y has shape (6, 1), but f has (6,)"),
    (lambda: apps.square_loss(NAN), "finite real numbers"),
    (lambda: descent(lambda f: jnp.nan * f.sum()).run([1.0]), "could not be solved"),
    (lambda: descent(lambda f: jnp.sum(jnp.log(f - 5))).run([1.0]), "cost gives [nan] along the path"),
    (lambda: descent().run("soon"), "times is 'soon'"),
    (lambda: descent().run([1.0], solver="implicit"), "solver is 'implicit', expected a diffrax solver"),
    (lambda: apps.spectra(kernel(), X, w=["a", "b"]), "w is ['a', 'b'], expected a number"),
    (lambda: apps.Empirical(linear, PARAMS)(X, get=3), "get is 3, expected 'nngp', 'ntk'"),
    (lambda: apps.Empirical(linear, PARAMS)(X, get=("ntk", "ntk")), "or a tuple of them, each once"),
    (lambda: descent(lambda f: np.sum(np.asarray(f))), "cost fails for values of shape (6,)"),
    (lambda: descent(lambda f: jnp.sum(f * 1j)), "expected a JAX function of the network's values to one real number"),
    (lambda: descent(lambda f: (jnp.sum(f), f)), "expected a JAX function of the network's values to one real number"),
    (lambda: apps.certify(kernel(), X, entry_error=-1.0), "entry_error is -1.0"),
    (lambda: apps.Empirical(linear, {"a": "x"}), "expected arrays of real numbers"),
    (lambda: apps.Empirical(linear, {"a": np.ones((2, 3), int)}), "array of dtype int64 at ['a']"),
    (lambda: apps.Empirical(linear, PARAMS, speeds=-1.0), "a speed is -1.0"),
    (lambda: apps.Empirical(linear, PARAMS, speeds={"a": "fast"}), "a speed is 'fast'"),
    (lambda: apps.Empirical(linear, PARAMS)(X[:, :2]), "f(params, x) fails for one example of shape (2,)"),
    (lambda: apps.Empirical(linear, PARAMS)(X, TEST[:, :2]), "Empirical: x2"),
    (lambda: apps.Empirical(linear, PARAMS)(1.0), "x1 holds no array with a batch axis"),
    (lambda: apps.Empirical(linear, PARAMS)(HOLE), "x1 has NaN"),
    (lambda: apps.Empirical(lambda p, x: (p["a"] @ x,), PARAMS)(X), "returns a tuple, expected one array"),
    (lambda: apps.monte_carlo(net, 1.0, 8, 4, KEY), "x holds no array with a batch axis"),
    (lambda: apps.monte_carlo(net, X[:0], 8, 4, KEY), "x holds no inputs"),
    (lambda: apps.monte_carlo(net, X, 8, 4, 0), "key is a int"),
    (lambda: apps.monte_carlo(net, X, 8, 4, KEY, v=1.0), "unknown argument 'v'"),
    (lambda: apps.monte_carlo(net, X, 8, 4, KEY, w=-1.0), "hyperparameter 'w' is -1.0"),
    (lambda: kernel().check(X[:0]), "x holds no inputs"),
    (lambda: kernel().check(X, seed="a"), "check: seed is 'a'"),
    (lambda: apps.linearised(3, PARAMS), "f is a int"),
    (lambda: apps.linearised(linear, PARAMS)({"b": PARAMS["a"]}, X[0]), "expected that of the point of expansion"),
    (lambda: apps.learnability(kernel(), X[:0], Y[:0]), "x holds no inputs"),
    (lambda: apps.learnability(kernel(), X, Y).learned("a"), "steps is 'a'"),
    (lambda: apps.shape_activation(3, slope=1.1), "phi is a int"),
    (lambda: apps.speeds(net, X[0], 0), "width is 0"),
    (lambda: apps.spectra(kernel(), X, w=[-1.0]), "hyperparameter 'w' is -1.0"),
    (lambda: apps.Block(tp.joint(net, X[0])), "block is a JointKernel"),
    (lambda: apps.spectra(kernel(), X), "expected one hyperparameter with several values"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_is_refused(number: int) -> None:
    call, message = CASES[number]
    with pytest.raises(tp.InputError) as caught:
        call()
    assert message in str(caught.value)


def test_limits_that_are_documented() -> None:
    """No inputs, no targets to learn, a network of zeros: answers, not errors."""
    empty = apps.GaussianProcess(kernel(), X[:0], Y[:0], noise=0.1)
    np.testing.assert_array_equal(empty.mean(TEST), np.zeros(2))  # the prior
    assert apps.Empirical(linear, PARAMS)(X[:0]).ntk.shape == (0, 0)
    nothing = apps.learnability(kernel(), X, 0 * Y)
    assert nothing.warnings() == [] and not nothing.shares.any()
    flat = apps.learnability(lambda a, b, get: [np.zeros((6, 6))], X, Y)
    assert np.isinf(flat.steps).all() and "cannot be learned" in flat.warnings()[0]
