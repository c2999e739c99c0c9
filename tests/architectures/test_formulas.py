"""Architectures of examples/architectures.py against formulas written by hand from their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

import tensorprog as tp
from examples import architectures as zoo
from tests.references import duals, quadrature

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
    close(zoo.compiled("maxout")(VECTORS), (nngp, 2 * nngp + 2 * both * k))


def test_gated_linear_unit() -> None:
    """E[a a'] E[s(b) s(b')]: independent branches of one hidden layer."""
    sigmoid = quadrature.dual(expit, lambda u: expit(u) * expit(-u), "sigmoid")
    k = linear(VECTORS)
    value, slope = layer(sigmoid, k)
    nngp = k * value
    # the readout, the linear branch, the gate; each branch also moves the first layer
    close(zoo.compiled("glu")(VECTORS), (nngp, nngp + 2 * k * value + 2 * k * slope * k))


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
    close(zoo.compiled("tied_layers")(VECTORS), (value, value + slope * theta))


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
    close(zoo.compiled("gcn")(x), (mean(k), mean(k) + mean(theta)))


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
    close(zoo.compiled("gin")(x), tuple(totals))


def test_causal_attention() -> None:
    """Logits concentrate on E[k_s k_t] (Tensor Programs II); tokens see those before them."""
    x = np.random.default_rng(6).standard_normal((N, 4, 3))
    k = np.einsum("gsd,htd->ghst", x, x) / 3
    allowed = np.tril(np.ones((4, 4), bool))
    weights = softmax(np.where(allowed, np.einsum("ggst->gst", k), -np.inf), axis=-1)
    mixed = spread(weights, k)
    value, slope = nodewise(duals.relu, mixed)
    mean = lambda m: m.mean((2, 3))
    close(zoo.compiled("causal_attention")(x), (mean(value), mean(value) + mean(slope * 2 * mixed)))


def test_a_mask_is_a_shorter_sequence() -> None:
    x = zoo.random_inputs(zoo.ARCHITECTURES["masked_rnn"].example, 2)
    x["mask"][:] = np.arange(4) < 2
    short = {"x": x["x"][:, :2], "mask": x["mask"][:, :2]}
    kernel = tp.compile(zoo.masked_rnn, jax.tree.map(lambda a: a[0], short))
    close(zoo.compiled("masked_rnn")(x), kernel(short))


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
    close(zoo.compiled("token_embedding")(jnp.asarray(ids)), (mean(value), mean(value) + mean(slope * 2 * k)))
