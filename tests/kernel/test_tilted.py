"""Batch norm and its kind by the Laplace reduction: against the formulas of the literature, sampling, and where it declines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from ntk_rules.interpreted import by_numpy
from tensorprog import nn
from tensorprog.kernel.graph import Sampled, Tilted
from tests.references.batch_norm import across_batches, within_batch
from tests.uncompiled import uncompiled

B, D = 6, 9
LONG = pytest.mark.long
X = np.random.default_rng(4).standard_normal((2, B, D))


def batch_norm(h: jax.Array, epsilon: float) -> jax.Array:
    mean = h.mean(0)
    return (h - mean) * lax.rsqrt(jnp.square(h - mean).mean(0) + epsilon)


def fast_batch_norm(h: jax.Array, epsilon: float) -> jax.Array:
    """The variance as E[x^2] - E[x]^2, as many libraries write it."""
    mean = h.mean(0)
    return (h - mean) / jnp.sqrt(jnp.maximum((h * h).mean(0) - mean**2, 0.0) + epsilon)


def network(epsilon: float, normalise=batch_norm, phi=jax.nn.relu):
    return lambda x: nn.dense(phi(normalise(nn.dense(x), epsilon)), features=1)


def kinds(kernel: tp.Kernel) -> set[type]:
    return {type(q) for q in kernel.graph.nodes} & {Sampled, Tilted}


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.1])
def test_relu_after_batch_norm(epsilon: float) -> None:
    """Yang et al. 2019, appendix E: one integral within a batch, two across."""
    kernel = tp.compile(network(epsilon), X[0])
    assert kinds(kernel) == {Tilted}
    found = kernel(X, get="nngp")
    np.testing.assert_allclose(found[0, 0], within_batch(X[0], epsilon), rtol=0, atol=1e-10)
    # the reference's own grid is no better where epsilon cuts its integrand off late
    np.testing.assert_allclose(found[0, 1], across_batches(X[0], X[1], epsilon), rtol=0, atol=1e-9)


def of_one_input(kernel: tp.Kernel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both kernels of a batch with itself, an integral over one line."""
    nngp, ntk = by_numpy(kernel.functions.diagonal)([x[None]], {})
    return np.asarray(nngp[0]), np.asarray(ntk[0])


@pytest.mark.parametrize("pooled", [False, pytest.param(True, marks=LONG)])
def test_readouts_of_all_positions_of_an_instance_norm(pooled: bool) -> None:
    """Sums over positions of what is computed along both axes of K[s, t] at once."""

    def net(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(batch_norm(nn.dense(x), 0.1))
        return nn.dense(h.mean(0) if pooled else h.reshape(-1), features=1)

    wanted = within_batch(X[0], 0.1)
    nngp, _ = of_one_input(tp.compile(net, X[0]), X[0])
    np.testing.assert_allclose(nngp, wanted.mean() if pooled else np.diag(wanted).mean(), rtol=1e-10)


@pytest.mark.parametrize("members", [pytest.param(3, marks=LONG), pytest.param(2, marks=pytest.mark.slow)])
def test_few_members(members: int) -> None:
    """Of three Gaussians and one of them again, as of many."""
    x = X[0, :members]
    found, _ = of_one_input(tp.compile(network(0.1), x), x)
    np.testing.assert_allclose(found, within_batch(x, 0.1), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_few_members_both_ways() -> None:
    x = X[0, :3]
    tangent, adjoint = (of_one_input(tp.compile(network(0.1), x, method=m), x)[1] for m in ("tangent", "adjoint"))
    np.testing.assert_allclose(adjoint, tangent, rtol=0, atol=1e-12 * np.abs(tangent).max())


@pytest.mark.parametrize(
    ("rank", "ntk"),
    [pytest.param(r, k, marks=m) for r, k, m in ((3, 1.0, LONG), (2, np.nan, LONG), (4, 5 / 8, pytest.mark.slow))],
)
def test_unit_vectors_without_an_epsilon(rank: int, ntk: float) -> None:
    """h / |h| of independent h: E[u u'] = 1 / rank, and the slopes (1 - u u') / |h| have (1 - 1 / rank) E[|h|^-2] = 1 / rank
    (1 - 1 / rank) / (1 - 2 / rank): infinite in the plane."""
    x = np.sqrt(rank) * np.eye(rank)
    unit = lambda h: h / jnp.sqrt((h * h).sum(0))
    kernel = tp.compile(lambda x: nn.dense(unit(nn.dense(x)), features=1), x)
    value, slope = of_one_input(kernel, x)
    np.testing.assert_allclose(value, np.eye(rank) / rank, rtol=0, atol=1e-10)
    np.testing.assert_allclose(slope, np.where(np.eye(rank), ntk, 0.0), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_more_members_than_features() -> None:
    """A singular covariance, whose integrand falls off late."""
    x = np.random.default_rng(5).standard_normal((1, B, 2))
    found = uncompiled(tp.compile(network(1e-4), x[0]), x).nngp
    np.testing.assert_allclose(found[0, 0], within_batch(x[0], 1e-4), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_every_way_to_write_it() -> None:
    first, second = (uncompiled(tp.compile(network(1e-3, n), X[0]), X) for n in (batch_norm, fast_batch_norm))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(a).max())


@pytest.mark.slow
def test_the_tangent_kernel_is_that_of_a_sum_of_weights() -> None:
    """sum over weights of E[dh dh'] E[x x']: backpropagation through the batch, sampled; ours is the tangent program."""
    kernel = tp.compile(network(1e-3), X[0])
    found = kernel(X[:1]).ntk[0, 0]
    rng = np.random.default_rng(0)
    covariance = X[0] @ X[0].T / D
    h = rng.standard_normal((400_000, B)) @ np.linalg.cholesky(covariance).T

    def output(h: jax.Array) -> jax.Array:
        return jax.nn.relu(batch_norm(h, 1e-3))

    jacobians = np.asarray(jax.jit(jax.vmap(jax.jacobian(output)))(h))
    values = np.asarray(output(h.T)).T
    wanted = np.einsum("zab,zcd,bd->ac", jacobians, jacobians, covariance, optimize=True) / len(
        h
    ) + values.T @ values / len(h)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 0.02 * scale  # 400,000 samples of a heavy-tailed gradient


@pytest.mark.slow
def test_bias_leaky_relu_and_absolute_value_stay_exact() -> None:
    """Dependent Gaussians of several weights; functions homogeneous on either side of zero."""
    for phi in (jax.nn.leaky_relu, jnp.abs, lambda z: z):
        net = lambda x, phi=phi: nn.dense(phi(batch_norm(nn.dense(x, bias_var=0.5), 1e-2)), features=1)
        kernel = tp.compile(net, X[0])
        assert kinds(kernel) == {Tilted}
        plain = tp.compile(network(1e-2, phi=phi), X[0])  # a bias is the same at every place and is normalised away
        np.testing.assert_allclose(kernel(X).nngp, plain(X).nngp, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_deep() -> None:
    def net(x):
        h = nn.dense(x)
        for _ in range(2):
            h = nn.dense(jax.nn.relu(batch_norm(h, 1e-3)))
        return nn.dense(h, features=1)

    found = uncompiled(tp.compile(net, X[0]), X).nngp
    first = np.block(
        [[within_batch(X[0], 1e-3), c := across_batches(X[0], X[1], 1e-3)], [c.T, within_batch(X[1], 1e-3)]]
    )
    wanted = within_batch(None, 1e-3, covariance=first[:B, :B])
    np.testing.assert_allclose(found[0, 0], wanted, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_what_is_not_homogeneous_is_sampled() -> None:
    net = network(1e-3, phi=jnp.tanh)
    with pytest.raises(tp.errors.UnsupportedError, match=r"tolerance=1e-2"):
        tp.compile(net, X[0])
    kernel = tp.compile(net, X[0], tolerance=1e-2)
    assert kinds(kernel) == {Sampled}
    error = kernel.standard_error(X[:1], get="nngp")
    h = np.random.default_rng(1).standard_normal((200_000, B)) @ np.linalg.cholesky(X[0] @ X[0].T / D).T
    image = np.tanh(np.asarray(batch_norm(h.T, 1e-3)))
    gap = np.abs(kernel(X[:1], get="nngp")[0, 0] - image @ image.T / len(h))
    assert gap.max() < 5 * (error.max() + 200_000**-0.5)
    assert error.max() < 1e-2
