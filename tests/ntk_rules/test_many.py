"""Expectations of more than ten Gaussians, whose numbers have two digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ntk_rules import expectation

Z = sp.symbols("z:12", real=True)


def test_twelve_gaussians() -> None:
    """E cos u cos v = e^{-(C_uu + C_vv)/2} cosh C_uv, with covariances that all differ. (C of 1 and 10 was read as that of 1 and 1.)"""
    root = np.random.default_rng(0).normal(size=(12, 12)) / 4
    C = root @ root.T
    pairs = [(0, 1), (1, 10), (1, 11), (0, 11), (10, 11), *((1, k) for k in range(2, 10))]
    F = sum((k + 1) * sp.cos(Z[i]) * sp.cos(Z[j]) for k, (i, j) in enumerate(pairs)) + sp.cos(Z[1]) ** 2
    cosines = lambda i, j: np.exp(-(C[i, i] + C[j, j]) / 2) * np.cosh(C[i, j])
    wanted = sum((k + 1) * cosines(i, j) for k, (i, j) in enumerate(pairs)) + cosines(1, 1)
    with jax.enable_x64(True):
        law = expectation(F, Z)
        found = law.value([jnp.asarray(C[i, j]) for i, j in law.needs])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
