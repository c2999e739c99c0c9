"""Hyperparameters inside of functions: right, or refused, whatever their value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

X = np.random.default_rng(0).standard_normal((3, 4))
Function = Callable[[jax.Array, Any], jax.Array]
laplace: Function = lambda h, c: jnp.exp(-c * jnp.abs(h))
bell: Function = lambda h, c: jnp.exp(-c * h**2)


def compiled(function: Function, c: Any) -> tp.Kernel:
    return tp.compile(lambda x: nn.dense(function(nn.dense(x, bias_var=0.1), c), features=1), X[0])


@pytest.fixture(scope="module")
def of_hyper() -> Callable[[Function], tp.Kernel]:
    made: dict[Function, tp.Kernel] = {}
    return lambda function: made.setdefault(function, compiled(function, tp.hyper("c", 1.0)))


@pytest.mark.parametrize(("function", "c"), [(laplace, 1.0), (laplace, 0.3), (bell, 3.0)])
def test_as_with_a_fixed_number(function: Function, c: float, of_hyper: Any) -> None:
    wanted = compiled(function, c)(X)
    for found, rtol in ((of_hyper(function)(X, c=c), 1e-8), (of_hyper(function)(X.astype(np.float32), c=c), 1e-5)):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "c"), [(laplace, 5.0), (laplace, 10.0), (bell, 0.0)])
def test_refused_where_terms_cancel(function: Function, c: float, dtype: Any, of_hyper: Any) -> None:
    """exp(-5 |h|) had a kernel off by 40 %, of 10 one of zero, and so had exp(-0 h^2)."""
    kernel = of_hyper(function)
    for call in (kernel, kernel.diag):
        with pytest.raises(tp.InputError, match=r"may be off by .* of its size"):
            call(X.astype(dtype), c=c)


def test_values_of_the_input_count_as_well() -> None:
    scaled = lambda x: nn.dense(jnp.exp(-jnp.abs(nn.dense(x)) * x[0] ** 2), features=1)
    kernel = tp.compile(scaled, X[0])
    kernel(np.array([[1.0, 0.1, 0.1, 0.1], [0.5, 1.0, 0.0, 0.0]]))
    with pytest.raises(tp.InputError, match="may be off by"):
        kernel(np.array([[1.0, 0.1, 0.1, 0.1], [3.0, 1.0, 0.0, 0.0]]))


def test_equal_inputs_under_noise_are_two() -> None:
    """Their tangent kernel in float32 was that of an input with itself."""
    net = lambda x: nn.dense(jax.nn.relu(nn.dense(nn.dropout(jax.nn.relu(nn.dense(x)), 0.5))), features=1)
    kernel, x = tp.compile(net, jnp.zeros(4)), np.concatenate([X[:2], X[:1]])
    for args in ((x,), (x, x)):
        for a, b in zip(kernel(*(z.astype(np.float32) for z in args)), kernel(*args), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


WHOLE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sum": lambda x: x.sum() / 100,
    "squares": lambda x: (x * x).sum() / 100,
    "mean": lambda x: x / x.sum(),
    "of 32 bits": lambda x: x.astype(jnp.int32).sum() / 100,
    "rounded": lambda x: jnp.clip(x * 1.5, 0, 127).astype(jnp.int8).sum() / 100,
    "the largest": lambda x: x[jnp.argmax(x)] / 100,
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("name", WHOLE)
def test_small_whole_numbers_are_summed_as_jax_sums_them(name: str, dtype: Any) -> None:
    """Sums of pixels wrapped around in 8 bits."""
    x, inside = (np.abs(X) * 40 + 60).astype(dtype), WHOLE[name]
    layers = lambda h: nn.dense(jax.nn.relu(nn.dense(h)), features=1)
    outside = np.stack([np.asarray(inside(jnp.asarray(row))) * np.ones(4) for row in x])
    for double in (True, False):
        with jax.enable_x64(double):
            found = tp.compile(lambda x: layers(inside(x) * jnp.ones(4)), jnp.asarray(x[0]))(jnp.asarray(x))
            wanted = tp.compile(layers, jnp.zeros(4))(jnp.asarray(outside))
        np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-5)
