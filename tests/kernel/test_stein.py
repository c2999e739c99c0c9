"""Stein's lemma for powers of Gaussians beside functions without closed form, against quadrature over independent normal numbers."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.special import expit

import tensorprog as tp
from ntk_rules.functions import logistic
from tensorprog import nn
from tensorprog.kernel.stein import argument, by_stein
from tests.kernel.common import close
from tests.uncompiled import uncompiled

FACTOR = np.array([[1.0, 0, 0], [0.3, 0.8, 0], [-0.4, 0.5, 0.6]])  # of the covariances of three Gaussians


def gauss(order: int, dimensions: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Independent normal numbers at the nodes of a product rule, and its weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    grid = np.meshgrid(*[nodes] * dimensions, indexing="ij", sparse=True)
    total = weights
    for _ in range(dimensions - 1):
        total = total[..., None] * weights
    return grid, total


@pytest.mark.parametrize("powers", list(itertools.product((1, 2, 3), (1, 2))))
def test_lemma(powers: tuple[int, int]) -> None:
    """E[u0^m u1^n F(u2)]: what is left has fewer Gaussians, and is the same number."""
    z, weights = gauss(60, 3)
    u = [sum(FACTOR[i, k] * z[k] for k in range(i + 1)) for i in range(3)]
    covariances = FACTOR @ FACTOR.T
    symbols = [argument(i) for i in range(3)]
    m, n = powers
    product = symbols[0] ** m * symbols[1] ** n * logistic(symbols[2])

    def mean(expr: sp.Expr) -> float:
        return float(np.sum(weights * sp.lambdify(symbols, expr, [{"logistic": expit}, "numpy"])(*u)))

    found = by_stein(product, frozenset())
    assert all(len(part.free_symbols) < 3 for part, _ in found)
    total = sum(mean(part) * np.prod([covariances[pair] for pair in pairs]) for part, pairs in found)
    want = mean(product)
    assert abs(total - want) < 1e-10 * (1 + abs(want))


def test_closed_forms_stay_as_they_are() -> None:
    u, v, w = map(argument, range(3))
    product = u**2 * sp.erf(v) * sp.erf(w)
    assert by_stein(product, frozenset()) == [(product, ())]


@pytest.mark.long
@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_gated_product(method: str) -> None:
    """h g sigmoid(h + g), both kernels, against a product rule in h, g and those of the other input."""

    def net(x: jax.Array) -> jax.Array:
        h, g = nn.dense(x), nn.dense(x)
        return nn.dense(h * g * jax.nn.sigmoid(h + g), features=1)

    x = np.array([[1.0, 0.5], [0.4, -0.9]])
    found = uncompiled(tp.compile(net, jnp.zeros(2), method=method), x)
    k = x @ x.T / 2
    (a, b, c, d), weights = gauss(40, 4)
    corner, rest = k[0, 1] / np.sqrt(k[0, 0]), np.sqrt(k[1, 1] - k[0, 1] ** 2 / k[0, 0])
    h, g = np.sqrt(k[0, 0]) * a, np.sqrt(k[0, 0]) * b
    other_h, other_g = corner * a + rest * c, corner * b + rest * d

    def layer(h: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        s = expit(h + g)
        slope = h * g * s * (1 - s)
        return h * g * s, g * s + slope, h * s + slope

    values, others = layer(h, g), layer(other_h, other_g)
    product, by_h, by_g = (float(np.sum(weights * p * q)) for p, q in zip(values, others, strict=True))
    close(found.nngp[0, 1], product)
    close(found.ntk[0, 1], product + k[0, 1] * (by_h + by_g))
