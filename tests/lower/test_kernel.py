"""Compiled kernels as functions of arrays: tiles, symmetry, derivatives at singular places, dtypes, structures of inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.kernel.graph import Expect
from tensorprog.lower import emit
from tensorprog.runtime import tiles

X = np.random.default_rng(0).standard_normal((7, 3))


def relu_net(x: jax.Array) -> jax.Array:
    h = nn.dense(x, weight_var=tp.hyper("w2", 1.5), bias_var=0.1)
    return nn.dense(jax.nn.relu(h), features=1)


def pooled(x: jax.Array) -> jax.Array:
    return nn.dense(jnp.tanh(nn.conv(x[:, None], 2)).mean(0), features=1)


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    return tp.compile(relu_net, jnp.zeros(3))


@pytest.mark.parametrize("net", [relu_net, pytest.param(pooled, marks=pytest.mark.slow)])
def test_tiles_and_symmetry_change_nothing(net, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    one = tp.compile(net, jnp.zeros(3))
    whole, cross = one(X), one(X, X[:4])
    monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 4 * tiles._LIVE * 8)
    cut = tp.compile(net, jnp.zeros(3))
    for a, b in zip((*whole, *cross), (*cut(X), *cut(X, X[:4])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
    for k in cut(X):
        np.testing.assert_array_equal(k, k.T)
        assert np.linalg.eigvalsh(k).min() > 0


def test_repeated_inputs_give_the_diagonal_exactly(kernel: tp.Kernel) -> None:
    double = kernel(np.concatenate([X, X]))
    for k, d in zip(double, kernel.diag(X), strict=True):
        np.testing.assert_array_equal(np.diag(k[:7, 7:]), d)
        np.testing.assert_array_equal(np.diag(k), np.concatenate([d, d]))


def test_get_and_empty(kernel: tp.Kernel) -> None:
    both = kernel(X)
    np.testing.assert_allclose(kernel(X, get="ntk"), both.ntk, rtol=1e-13)
    nngp, _ntk = kernel(X, get=("nngp", "ntk"))
    np.testing.assert_allclose(nngp, both.nngp, rtol=1e-13)
    assert kernel(X[:0]).nngp.shape == (0, 0) and kernel(X, X[:0]).ntk.shape == (7, 0)


@functools.cache
def derivatives(kernel: tp.Kernel, which: str) -> tuple[Callable, ...]:
    """A kernel of two inputs, its slope, that of the kernel of one, and the second derivatives: compiled once for all places."""
    f = lambda a, b: kernel(a[None], b[None], get=which)[0, 0]
    return (
        f,
        jax.jit(jax.grad(f)),
        jax.jit(jax.grad(lambda a: kernel(a[None], get=which)[0, 0])),
        jax.jit(jax.hessian(f)),
    )


@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize("place", ["same", "zero", "opposite", "both zero", "apart"])
def test_derivatives_are_finite_and_right(kernel: tp.Kernel, which: str, place: str) -> None:
    x = jnp.asarray(X[0])
    y = {"same": x, "zero": 0 * x, "opposite": -x, "both zero": 0 * x, "apart": jnp.asarray(X[1])}[place]
    x = 0 * x if place == "both zero" else x
    f, slopes, alone, curves = derivatives(kernel, which)
    slope = slopes(x, y)
    assert jnp.isfinite(slope).all()
    assert jnp.isfinite(alone(x)).all()
    assert jnp.isfinite(curves(x, y)).all()
    if place == "apart" or which == "nngp":
        step = 1e-5 * jnp.asarray([1.0, -2.0, 0.5])
        difference = (f(x + step, y) - f(x - step, y)) / 2
        # central differences of a function whose third derivative is of order one at these places
        np.testing.assert_allclose(slope @ step, difference, rtol=0, atol=2e-9 * float(jnp.abs(step).max()) * 1e3)


def test_hyperparameters_are_differentiable_arguments(kernel: tp.Kernel) -> None:
    f = lambda w2: kernel(X[:2], w2=w2).ntk.sum()
    step = 1e-5
    # central differences: rounding 1e-16 / 1e-5 and the third derivative times 1e-10
    np.testing.assert_allclose(jax.grad(f)(1.3), (f(1.3 + step) - f(1.3 - step)) / (2 * step), rtol=1e-8)
    other = tp.compile(
        lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=1.7, bias_var=0.1)), features=1), jnp.zeros(3)
    )
    np.testing.assert_allclose(kernel(X, w2=1.7).ntk, other(X).ntk, rtol=1e-12)


def test_transformations_agree(kernel: tp.Kernel) -> None:
    plain = kernel(X, X[:3]).ntk
    np.testing.assert_allclose(jax.jit(lambda x: kernel(x, X[:3]).ntk)(X), plain, rtol=1e-12)
    rows = jax.vmap(lambda x: kernel(x[None], jnp.asarray(X[:3])).ntk[0])(jnp.asarray(X))
    np.testing.assert_allclose(rows, plain, rtol=1e-12)


def test_dtypes(kernel: tp.Kernel, tolerance) -> None:  # type: ignore[no-untyped-def]
    exact = kernel(X)
    low = kernel(X.astype(np.float32))
    assert low.ntk.dtype == np.float32 and exact.ntk.dtype == np.float64
    for a, b in zip(low, exact, strict=True):
        assert np.abs(a - b).max() <= tolerance("float32") * np.abs(b).max()
    whole = np.arange(6).reshape(2, 3)
    np.testing.assert_allclose(kernel(whole).nngp, kernel(whole.astype(float)).nngp)
    np.testing.assert_allclose(kernel(whole > 2).nngp, kernel((whole > 2).astype(float)).nngp)
    assert kernel(X.astype(np.float32), X).ntk.dtype == np.float64


def test_trees_and_whole_numbers_as_inputs() -> None:
    table = np.random.default_rng(1).standard_normal((5, 3))

    def net(x: dict) -> jax.Array:  # type: ignore[type-arg]
        h = nn.dense(jnp.asarray(table)[x["word"]]) + nn.dense(x["value"])
        return nn.dense(jax.nn.relu(h), features=1)

    kernel = tp.compile(net, {"word": jnp.zeros((), int), "value": jnp.zeros(2)})
    words, values = np.array([0, 3, 3]), np.random.default_rng(2).standard_normal((3, 2))
    found = kernel({"word": words, "value": values})
    plain = tp.compile(lambda v: nn.dense(jax.nn.relu(nn.dense(v[:3]) + nn.dense(v[3:])), features=1), jnp.zeros(5))(
        np.concatenate([table[words], values], 1)
    )
    np.testing.assert_allclose(found.ntk, plain.ntk, rtol=1e-10)
    with pytest.raises(tp.InputError, match="expected int"):
        kernel({"word": words.astype(float), "value": values})
    with pytest.raises(tp.InputError, match=r"hold \[2, 3\] examples"):
        kernel({"word": words[:2], "value": values})


@pytest.mark.slow
def test_outputs_at_positions_with_features() -> None:
    """Features are identical copies wherever their axis stands: positions keep theirs, also where the sizes coincide."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 2))
    head = lambda features: lambda x: nn.dense(jnp.tanh(nn.conv(x, 3)), features=features)
    one = tp.compile(head(1), jnp.zeros((4, 2)))(x)
    for features in (3, 4):
        found = tp.compile(head(features), jnp.zeros((4, 2)))
        np.testing.assert_allclose(found(x).ntk, one.ntk, atol=1e-12)
        np.testing.assert_allclose(found(x, x[:2]).nngp, one.nngp[:, :2], atol=1e-12)
        np.testing.assert_allclose(found.diag(x).nngp, np.einsum("iipq->ipq", one.nngp), atol=1e-12)


def test_equal_layers_are_emitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jax.nn.relu(nn.dense(x, bias_var=0.1))
        return nn.dense(x, features=1)

    emitted: list[bool] = []
    usual = emit.EMIT[Expect]
    monkeypatch.setitem(emit.EMIT, Expect, lambda q, *rest: emitted.append(q.cross) or usual(q, *rest))
    kernel = tp.compile(net, jnp.zeros(3)).without("loops", "interpolation")
    kernel(X, X[:4])
    assert emitted.count(True) == 2  # a layer's covariance, and the slope of its tangent's
