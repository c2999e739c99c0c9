"""Hermite coefficients of smooth functions, and what is known of the error of a series and of the plane beyond it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation, numeric, probes, smooth
from ntk_rules.functions import softplus
from ntk_rules.question import gaussian_symbols

u, v = sp.symbols("u v")


@pytest.mark.parametrize("f", [sp.tanh, softplus])
def test_what_was_looked_at_is_the_error_that_is_stated(f):
    """The error of the series is not asked for again where the plane takes over beyond it."""
    E = expectation(f(u) * f(v), (u, v))
    question = E._core.question
    factors = [numeric.factor_of(h, k, question) for k, h in enumerate(map(f, gaussian_symbols(2)))]
    part, _ = numeric._regular_pair(*factors, question)
    assert part.probes is not None
    anew = probes.probed(lambda *law: part.error(*law), E.needs, 0, numeric._EVERYWHERE)
    np.testing.assert_allclose(part.probes.error, anew.error, rtol=1e-9)
    np.testing.assert_allclose(part.probes.scale, anew.scale, rtol=1e-12)


@pytest.mark.parametrize("double", [True, pytest.param(False, marks=pytest.mark.long)])
def test_hermite_coefficients_by_parity(double):
    """h_k themselves, by hand: of functions that are even, odd, and neither."""
    s = jnp.asarray([0.5, 2.0], jnp.float64 if double else jnp.float32)
    for f, wanted in (
        (lambda x: x**2, lambda s: {0: s**2, 2: np.sqrt(2) * s**2}),
        (lambda x: x**3, lambda s: {1: 3 * s**3, 3: np.sqrt(6) * s**3}),
        (lambda x: 1 + x, lambda s: {0: np.ones_like(s), 1: s}),
    ):
        for thin in numeric.THIN:
            found = np.asarray(jax.jit(lambda s, f=f, thin=thin: smooth.coefficients(f, s, (), thin))(s))
            right = np.zeros_like(found)
            for k, value in wanted(np.asarray(s)).items():
                right[k] = value
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-12 if double else 1e-4)


def test_coefficients_with_parameters_of_more_axes():
    of = jax.jit(lambda s, a: smooth.coefficients(lambda x, a: a * x, s, (a,)))
    found = of(jnp.asarray([1.0, 2.0]), jnp.asarray([[1.0], [3.0]]))
    np.testing.assert_allclose(found[1], [[1, 2], [3, 6]], rtol=1e-12)
