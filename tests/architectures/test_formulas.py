"""Architectures of examples/architectures.py against formulas written by hand from their definitions."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

import tensorprog as tp
from examples import architectures as zoo
from tests.references import duals, quadrature
from tests.uncompiled import uncompiled

N = 3
VECTORS = np.random.default_rng(2).standard_normal((N, 5))
Kernels = tuple[np.ndarray, np.ndarray]


def close(found, wanted: Kernels) -> None:
    for k, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(k, w, rtol=0, atol=1e-10 * np.abs(w).max())


def linear(x: np.ndarray) -> np.ndarray:
    return x @ x.T / x.shape[-1]


def layer(dual, k: np.ndarray) -> Kernels:
    """E[phi phi'] and E[phi' phi'] of a matrix of covariances."""
    q = np.diag(k)
    return dual.value(q[:, None], q[None], k), dual.slope(q[:, None], q[None], k)


def test_maxout() -> None:
    """max(u, v) = (u + v)/2 + |u - v|/2, of independent halves; a weight of either is moved where it is the larger."""
    k = linear(VECTORS)
    absolute, _ = layer(duals.abrelu(-1.0, 1.0, "abs"), 2 * k)
    nngp = k / 2 + absolute / 4
    _, both = layer(duals.relu, k)  # P(d > 0, d' > 0), twice: either side is the larger in both
    close(uncompiled(zoo.compiled("maxout"), VECTORS), (nngp, 2 * nngp + 2 * both * k))


@pytest.mark.long
def test_gated_linear_unit() -> None:
    """E[a a'] E[s(b) s(b')]: independent branches of one hidden layer."""
    sigmoid = quadrature.dual(expit, lambda u: expit(u) * expit(-u), "sigmoid")
    k = linear(VECTORS)
    value, slope = layer(sigmoid, k)
    nngp = k * value
    # the readout, the linear branch, the gate; each branch also moves the first layer
    close(uncompiled(zoo.compiled("glu"), VECTORS), (nngp, nngp + 2 * k * value + 2 * k * slope * k))


def test_tied_layers_are_untied_ones() -> None:
    """Used twice, the same way round, a weight has the forward kernel of two, and the sum of their tangent kernels."""
    k = linear(VECTORS)
    kernels = [k]
    theta = k
    for _ in range(2):
        value, slope = layer(duals.relu, kernels[-1])
        theta = value + slope * theta
        kernels.append(value)
    value, slope = layer(duals.relu, kernels[-1])
    close(uncompiled(zoo.compiled("tied_layers"), VECTORS), (value, value + slope * theta))


def graphs(count: int = N):
    return zoo.random_inputs(zoo.ARCHITECTURES["gcn"].example, count, seed=4)


def spread(matrix: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(A x)_i (A' x')_j for every pair of graphs, k (N, N, nodes, nodes)."""
    return np.einsum("gia,hjb,ghab->ghij", matrix, matrix, k)


def nodewise(dual, k: np.ndarray) -> Kernels:
    q = np.einsum("ggii->gi", k)
    args = q[:, None, :, None], q[None, :, None, :], k
    return dual.value(*args), dual.slope(*args)


def test_graph_convolutions() -> None:
    """Kipf and Welling's layers: A K A' and the arc-cosine kernels, node by node."""
    x = graphs()
    a = x["adjacency"] + np.eye(5)
    a = a / np.sqrt(a.sum(2)[:, :, None] * a.sum(2)[:, None])
    k = np.einsum("gid,hjd->ghij", x["nodes"], x["nodes"]) / 3
    theta = np.zeros_like(k)
    for _ in range(2):
        theta = 2 * (theta + k)
        k, theta = spread(a, 2 * k), spread(a, theta)
        k, slope = nodewise(duals.relu, k)
        theta = slope * theta
    mean = lambda m: m.mean((2, 3))
    close(uncompiled(zoo.compiled("gcn"), x), (mean(k), mean(k) + mean(theta)))


def test_graph_neural_tangent_kernel() -> None:
    """Du et al. 2019, section 4, two blocks of two layers with jumping knowledge."""
    x = graphs()
    a = x["adjacency"] + np.eye(5)
    k = np.einsum("gid,hjd->ghij", x["nodes"], x["nodes"])
    theta, totals, fan_in = np.zeros_like(k), [0.0, 0.0], 3
    for _ in range(2):
        k, theta = spread(a, k), spread(a, theta)
        for _ in range(2):
            k, theta, fan_in = 2 * k / fan_in, 2 * (k / fan_in + theta), 1
            k, slope = nodewise(duals.relu, k)
            theta = slope * theta
        totals = [totals[0] + k.sum((2, 3)), totals[1] + (k + theta).sum((2, 3))]
    close(uncompiled(zoo.compiled("gin"), x), tuple(totals))


def test_causal_attention() -> None:
    """Logits concentrate on E[k_s k_t] (Tensor Programs II); tokens see those before them."""
    x = np.random.default_rng(6).standard_normal((N, 4, 3))
    k = np.einsum("gsd,htd->ghst", x, x) / 3
    allowed = np.tril(np.ones((4, 4), bool))
    weights = softmax(np.where(allowed, np.einsum("ggst->gst", k), -np.inf), axis=-1)
    mixed = spread(weights, k)
    value, slope = nodewise(duals.relu, mixed)
    mean = lambda m: m.mean((2, 3))
    close(uncompiled(zoo.compiled("causal_attention"), x), (mean(value), mean(value) + mean(slope * 2 * mixed)))


@pytest.mark.slow
def test_a_mask_is_a_shorter_sequence() -> None:
    x = zoo.random_inputs(zoo.ARCHITECTURES["masked_rnn"].example, 2)
    x["mask"][:] = np.arange(4) < 2
    short = {"x": x["x"][:, :2], "mask": x["mask"][:, :2]}
    kernel = tp.compile(zoo.masked_rnn, jax.tree.map(lambda a: a[0], short))
    close(uncompiled(zoo.compiled("masked_rnn"), x), kernel(short))


@pytest.mark.parametrize("name", ["rms_norm", "deep_set", "token_embedding", "dense_net", "grouped_convolution"])
def test_positive_semidefinite(name: str) -> None:
    for k in zoo.compiled(name)(zoo.random_inputs(zoo.ARCHITECTURES[name].example, 5)):
        assert np.array_equal(k, k.T)
        assert np.linalg.eigvalsh(k).min() > -1e-10 * np.abs(k).max()


def test_token_embeddings() -> None:
    """Equal tokens and equal places have the covariance one each."""
    ids = np.array([[1, 2, 3, 1], [2, 2, 3, 7]])
    k = (ids[:, None, :, None] == ids[None, :, None, :]) + np.eye(4)
    value, slope = nodewise(duals.relu, k.astype(float))
    mean = lambda m: m.mean((2, 3))
    close(
        uncompiled(zoo.compiled("token_embedding"), jnp.asarray(ids)), (mean(value), mean(value) + mean(slope * 2 * k))
    )


def test_weight_norm_is_no_change() -> None:
    """The norm of a row concentrates, and what it loses along itself in training is of relative size 1/sqrt(n)."""
    k = linear(VECTORS)
    kernels, theta = [k], k
    for _ in range(2):
        value, slope = layer(duals.relu, kernels[-1])
        theta = value + slope * theta
        kernels.append(value)
    close(uncompiled(zoo.compiled("weight_norm"), VECTORS), (kernels[-1], theta))


def test_bilinear_head() -> None:
    """E[a a'] E[b b'], and the kernel of either side times that of the other."""
    pair = zoo.random_inputs(zoo.ARCHITECTURES["bilinear"].example, N)
    sides = []
    for x in pair.values():
        k = linear(x)
        value, slope = layer(duals.relu, k)
        sides.append((value, slope * k))
    (a, ta), (b, tb) = sides
    close(uncompiled(zoo.compiled("bilinear"), pair), (a * b, a * b + ta * b + a * tb))


def test_stochastic_depth() -> None:
    """The mean over the four networks of two layers, each kept with probability 0.7."""
    found = zoo.averaged_depth(zoo.compiled("stochastic_depth"), VECTORS, 0.7)
    own, pairs = np.zeros((2, N)), np.zeros((2, N, N))
    for kept in itertools.product([False, True], repeat=4):
        chance = np.prod(np.where(kept, 0.7, 0.3))
        nngp, ntk = depth_pair(kept[:2], kept[2:])
        pairs += chance * np.array([nngp, ntk])
        if kept[:2] == kept[2:]:
            own += 0.7 ** sum(kept[:2]) * 0.3 ** (2 - sum(kept[:2])) * np.array([np.diag(nngp), np.diag(ntk)])
    for k, wanted, diagonal in zip(found, pairs, own, strict=True):
        np.testing.assert_allclose(k, np.where(np.eye(N, dtype=bool), diagonal, wanted), rtol=1e-10)


def depth_pair(first: tuple[bool, ...], second: tuple[bool, ...]) -> Kernels:
    """Kernels between a net with the layers `first` kept and one with the layers `second`."""
    k = theta = linear(VECTORS)
    q = [np.diag(k), np.diag(k)]
    for kept in zip(first, second, strict=True):
        args = q[0][:, None], q[1][None], k
        value, slope = duals.relu.value(*args), duals.relu.slope(*args)
        if all(kept):
            k, theta = k + value, theta + value + slope * theta
        q = [a + keep * duals.relu.value(a, a, a) for a, keep in zip(q, kept, strict=True)]
    return k, theta + k


@pytest.mark.slow
def test_many_large_heads() -> None:
    """Hron et al. 2020, theorem 3, for two tokens: E[softmax(G) C softmax(G')'], Cov(G_st, G'_uv) = C_su C_tv; its tangent kernel with
    the queries and keys moved as well. A softmax of two is a sigmoid of d_s = G_s1 - G_s2."""
    x = 3 * zoo.random_inputs(zoo.ARCHITECTURES["many_large_heads"].example, N)
    sigmoid = quadrature.dual(expit, lambda u: expit(u) * expit(-u), "sigmoid")
    c = np.einsum("gsd,htd->ghst", x, x) / 3
    spread_of = c[..., 0, 0] + c[..., 1, 1] - c[..., 0, 1] - c[..., 1, 0]
    covariance = c * spread_of[..., None, None]  # of d_s and d'_u
    q = np.einsum("ggss->gs", covariance)
    args = q[:, None, :, None], q[None, :, None, :], covariance
    both, slope = sigmoid.value(*args), sigmoid.slope(*args)
    # E[p_s1] = 1/2, since d_s and -d_s are alike
    p = np.array([[both, 0.5 - both], [0.5 - both, both]])
    nngp = np.einsum("tvghsu,ghtv->gh", p, c) / 4
    moved = np.einsum("ghsu,gh,ghsu->gh", slope, spread_of, 2 * covariance) / 4
    assert np.abs(moved).max() > 0.1 * nngp.max()
    found = tp.compile(zoo.many_large_heads, x[0], tolerance=2e-3)(x)
    for k, wanted in zip(found, (nngp, 3 * nngp + moved), strict=True):  # readout, mixture, values; queries and keys
        np.testing.assert_allclose(k, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
