"""Maps of positions: between a weight and its transpose, all places together, and of a single place."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.passes import dots
from tests.references import duals
from tests.uncompiled import uncompiled

erf, relu = jax.scipy.special.erf, jax.nn.relu
X = jax.random.normal(jax.random.key(0), (2, 3, 2))
MIX = np.random.default_rng(0).standard_normal((100, 100)) / 10


def close(found: object, wanted: object, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * float(np.abs(np.asarray(wanted)).max()))


def test_a_hundred_places_that_are_mixed() -> None:
    """z = M relu(h W') W has Zdot = M h / 2, since every place has the mean slope 1/2: K = M (K[relu] + K[h] / 4) M'."""

    def net(x: jax.Array) -> jax.Array:
        w, h = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
        return nn.dense((MIX @ relu(h @ w.T)) @ w, features=1)[:, 0]

    xs = np.asarray(jax.random.normal(jax.random.key(1), (1, 100, 2)))
    k = np.asarray(xs[0] @ xs[0].T) / 2
    hidden = duals.relu.value(np.diag(k)[:, None], np.diag(k)[None, :], k)
    close(uncompiled(tp.compile(net, xs[0]), xs).nngp[0, 0], MIX @ (hidden + k / 4) @ MIX.T)


def tokens(x: jax.Array) -> jax.Array:
    w, h = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
    y = relu(h @ w.T)
    return nn.dense(nn.flatten((y + jnp.roll(y, 1, 0)) @ w), features=1)


def symmetric(x: jax.Array) -> jax.Array:
    s, h = nn.symmetric(nn.width()) / jnp.sqrt(nn.width()), nn.dense(x)
    return nn.dense(nn.global_avg_pool(jnp.cumsum(erf(h @ s), 0) @ s), features=1)


def exchanged(x: jax.Array) -> jax.Array:
    """Of a matrix for each pair of places the second product reads by its column what the first made by its row."""
    w = nn.weight((3, 3, nn.width(), nn.width())) / jnp.sqrt(3 * nn.width())
    y = erf(jnp.einsum("pqab,qb->pa", w, nn.dense(x)))
    z = jnp.einsum("pqab,qa->pb", w, y + 0.5 * y[::-1])
    return nn.dense(nn.flatten(z * jnp.arange(1.0, 4.0)[:, None]), features=1)


def flattened(x: jax.Array) -> jax.Array:
    w, h = nn.weight((nn.width(), 3 * nn.width())) / jnp.sqrt(nn.width()), relu(nn.dense(x))
    b = (w.T @ relu(w @ h.reshape(-1))).reshape(h.shape)
    return nn.dense(w @ (b + jnp.roll(b, 1, 0)).reshape(-1), features=1)


def each_its_own(x: jax.Array) -> jax.Array:
    w = nn.weight((3, nn.width(), nn.width())) / jnp.sqrt(nn.width())
    y = erf(jnp.einsum("pab,pb->pa", w, nn.dense(x)))
    return nn.dense(nn.flatten(jnp.einsum("pab,pa->pb", w, jnp.roll(y, 1, 0) + y)), features=1)


@pytest.mark.parametrize(
    "net", [tokens, symmetric, exchanged, pytest.param(flattened, marks=pytest.mark.slow), each_its_own]
)
def test_places_together_are_places_one_by_one(net: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for few in (1, 99):
        monkeypatch.setattr(dots, "FEW_PLACES", few)
        found.append(uncompiled(tp.compile(net, X[0]), X))
    for together, apart in zip(*found, strict=True):
        close(together, apart, 1e-12)


def test_exchanged_places_by_hand() -> None:
    """z[p] = sum_q W[p, q]' y[q] with y[q] = sum_r W[q, r] h[r]: W[p, q] meets its own transpose where q = p, as row p of y, which holds
    h[q] = h[p]. So Zdot[p] = h[p] / 3, and Zhat[p] has the variance sum_q E[y[q]^2] / 3."""

    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((3, 3, nn.width(), nn.width())) / jnp.sqrt(3 * nn.width())
        y = jnp.einsum("pqab,qb->pa", w, nn.dense(x))
        return nn.dense(jnp.einsum("pqab,qa->pb", w, y), features=1)[:, 0]

    k = np.asarray(X[0] @ X[0].T) / 2
    hat = np.trace(k) / 3 * np.eye(3)  # y[q] has the variance trace / 3 each, and rows are independent
    close(uncompiled(tp.compile(net, X[0]), X[:1]).nngp[0, 0], hat + k / 9)


@pytest.mark.parametrize(("matrix", "method"), [("constant", "tangent"), ("of the input", "adjoint")])
def test_a_matrix_of_a_single_place_is_a_factor(matrix: str, method: str) -> None:
    """Graphs of one node, attention of one token."""
    entry = (lambda x: jnp.array([[3.0]])) if matrix == "constant" else (lambda x: x @ x.T)
    product = lambda x: nn.dense(nn.flatten(jnp.square(entry(x) @ relu(nn.dense(x, name="one")))), features=1)
    times = lambda x: nn.dense(nn.flatten(jnp.square(entry(x)[0, 0] * relu(nn.dense(x, name="one")))), features=1)
    x = X[:, :1]
    found, wanted = (uncompiled(tp.compile(net, x[0], method=method), x) for net in (product, times))
    close(found.nngp, wanted.nngp)
    close(found.ntk, wanted.ntk)


def test_a_factor_written_as_a_map_of_positions() -> None:
    """A product with a matrix that leaves every axis as it is still multiplies."""
    kernel = tp.compile_program(
        """tensorprog 1
x0 = Input("x", (1, 2), "float64")
W0 = Weight("out", (1, n), std=1.0, tangent_std=0.0)
W1 = Weight("in", (n, 2), std=1.0, tangent_std=1.0)
v0 = MatMul("ab,cb->ca", W1, x0)
c0 = Const(3.0, "<f8", ())
v1 = PositionMap("dot", [v0, c0], "vector", (1, n), batch=((), ()), contract=((), ()), ndim=0)
v2 = MatMul("ab,cb->ca", W0, v1)
return_(v2)
"""
    )
    x = np.array([[[1.0, 2.0]]])
    close(kernel(x).nngp, 45.0)
    close(kernel(x).ntk, 45.0)


@pytest.mark.long
def test_the_largest_of_equal_positions() -> None:
    """Max pooling of equal patches is what it pools: the slopes of three equal numbers add up to one, in both orders of the inputs."""
    x = np.random.default_rng(1).standard_normal((2, 3, 2))
    x[0] = x[0, :1]
    kernel = tp.compile(lambda x: nn.dense(nn.dense(x).max(0), features=1), jnp.zeros((3, 2)), tolerance=1e-2)
    pooled = uncompiled(kernel, x, x.copy())
    alone = (x[0, 0] @ x[0, 0]) / 2
    np.testing.assert_allclose([pooled.nngp[0, 0], pooled.ntk[0, 0]], [alone, 2 * alone], rtol=2e-3)  # sampled
    np.testing.assert_allclose(
        pooled.ntk[0, 1], pooled.ntk[1, 0], rtol=0, atol=5e-3 * np.sqrt(pooled.ntk[1, 1] * 2 * alone)
    )
