"""Powers of Gaussians beside functions without closed form: Stein's lemma, by quadrature of the expectations as they stand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import sympy

import tensorprog as tp
from tensorprog import nn
from tensorprog.kernel.stein import argument, by_stein
from tests import sampling
from tests.uncompiled import uncompiled

X = np.array([[1.0, 0.3, -0.2], [0.4, 0.7, 0.5]])
U = tuple(map(argument, range(4)))
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / np.sqrt(2 * np.pi)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def wave(u: sympy.Expr) -> sympy.Expr:
    """Without closed form, and without poles, which quadrature by Gauss and Hermite would feel."""
    return sympy.exp(sympy.sin(u) / 2)


def mean(expr: sympy.Expr, covariance: np.ndarray) -> float:
    """E[expr] by Gauss and Hermite in all Gaussians that occur; 40 nodes each."""
    used = [i for i, u in enumerate(U) if expr.has(u)]
    if not used:
        return float(expr)
    root = np.linalg.cholesky(covariance[np.ix_(used, used)])
    grids = np.meshgrid(*[NODES] * len(used), indexing="ij")
    weights = np.prod(np.meshgrid(*[WEIGHTS] * len(used), indexing="ij"), axis=0)
    z = [sum(root[a, b] * grids[b] for b in range(a + 1)) for a in range(len(used))]
    return float((weights * sympy.lambdify([U[i] for i in used], expr, "numpy")(*z)).sum())


@pytest.mark.parametrize(
    ("expr", "apart"),
    [
        (U[0] ** 2 * U[1] ** 2 * wave(U[2]) ** 2, ((0, 1),)),
        (U[0] ** 3 * U[1] * wave(U[2]), ((0, 1),)),
        (U[0] ** 2 * U[1] * wave(U[2]) * wave(2 * U[3]), ()),
        (U[0] ** 4 * wave(U[1]) * wave(U[2]), ()),
    ],
)
def test_what_is_left_has_two_gaussians(expr: sympy.Expr, apart: tuple[tuple[int, int], ...]) -> None:
    a = np.random.default_rng(3).standard_normal((4, 4))
    covariance = a @ a.T / 32 + np.eye(4) / 16  # small: 40 nodes integrate the fourth derivatives to rounding
    for i, j in apart:
        covariance[i, j] = covariance[j, i] = 0.0
    found = by_stein(expr, frozenset(apart))
    assert all(sum(part.has(u) for u in U) <= 2 for _, part, _ in found)
    assert len({(part, pairs) for _, part, pairs in found}) == len(found)  # every question once
    total = sum(float(c) * mean(part, covariance) * np.prod([covariance[p] for p in pairs]) for c, part, pairs in found)
    np.testing.assert_allclose(total, mean(expr, covariance), rtol=1e-10)


@pytest.mark.parametrize(
    "expr",
    [
        U[0] ** 2 * U[1] ** 2 * sympy.Heaviside(U[2]),
        U[0] ** 2 * wave(U[1]),
        U[0] ** 2 * U[1] ** 2 * sympy.exp(U[2] ** 2),
    ],
)
def test_closed_forms_and_two_gaussians_and_what_is_infinite_stay(expr: sympy.Expr) -> None:
    assert by_stein(expr, frozenset()) == [(1, expr, ())]


def gated(nn, x, features):
    h, g = nn.dense(x), nn.dense(x)
    return nn.dense(h * g * jax.nn.sigmoid(h + g), features)


def by_quadrature(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[f f'], and with it x x' / 3 (E[f_h f_h'] + E[f_g f_g']), f = h g s(h + g), in four Gaussians."""
    covariance = x @ x.T / x.shape[1]
    weights = np.outer(WEIGHTS, WEIGHTS).ravel()
    first, second = (z.ravel() for z in np.meshgrid(NODES, NODES, indexing="ij"))

    def f(h, g):
        s = sigmoid(h + g)
        slope = h * g * s * (1 - s)
        return h * g * s, g * s + slope, h * s + slope

    nngp, ntk = np.empty((2, 2)), np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            c = covariance[np.ix_((i, j), (i, j))]
            if i == j:
                own = f(np.sqrt(c[0, 0]) * first, np.sqrt(c[0, 0]) * second)
                means = [(weights * a * a).sum() for a in own]
            else:
                root = np.linalg.cholesky(c)
                u, v = root[0, 0] * first, root[1, 0] * first + root[1, 1] * second
                one, two = f(u[:, None], u[None]), f(v[:, None], v[None])
                means = [weights @ (a * b) @ weights for a, b in zip(one, two, strict=True)]
            nngp[i, j], ntk[i, j] = means[0], means[0] + c[0, 1] * (means[1] + means[2])
    return nngp, ntk


@pytest.mark.long
def test_a_product_of_gaussians_and_a_function_of_their_sum() -> None:
    wanted = by_quadrature(X)
    for method in ("tangent", "adjoint"):
        found = uncompiled(tp.compile(lambda x: gated(nn, x, 1), X[0], method=method), X)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)  # the poles of the logistic function, which 40 nodes feel


@pytest.mark.slow
def test_finite_networks_approach_it() -> None:
    """The limit by quadrature is that of finite networks, at the rates of theory."""
    network = sampling.tensorprog_network(gated, X)
    sampling.check(network, by_quadrature(X), (32, 64, 128, 256), (8000, 4000, 2000, 1000))
