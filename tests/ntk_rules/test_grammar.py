"""Random expressions from a grammar: closed form and quadrature agree, and derivatives are Price's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ntk_rules import expectation, functions

from . import references
from .test_closed import numpy_of, values

pytestmark = pytest.mark.slow

u, v = sp.symbols("u v")
_BASES = [
    lambda z: sp.Max(z, 0), sp.Abs, lambda z: sp.Heaviside(z, sp.Rational(1, 2)), sp.erf,
    lambda z: z, lambda z: sp.exp(-(z**2) / 2), lambda z: sp.exp(z / 3), lambda z: sp.Min(sp.Max(z, -1), 1),
]  # fmt: skip


@st.composite
def activations(draw):
    """a f(b z) + c z^n g(d z), b and d of either sign."""
    f, g = draw(st.sampled_from(_BASES)), draw(st.sampled_from(_BASES))
    a, c = draw(st.integers(-2, 2)), draw(st.integers(-2, 2))
    b, d = draw(st.sampled_from([-1, 1])), draw(st.sampled_from([-1, 1]))
    n = draw(st.integers(0, 2))
    return lambda z: a * f(b * z) + c * z**n * g(d * z)


@given(activations(), st.floats(0.3, 1.5), st.floats(0.3, 1.5), st.floats(-0.95, 0.95))
def test_closed_form_equals_quadrature(f, q1, q2, rho):
    assume(f(u).has(u))
    E = expectation(f(u) * f(v), (u, v))
    assert E.tier == "closed form"
    c = rho * np.sqrt(q1 * q2)
    g = numpy_of(f)
    scale = 1 + np.sqrt(references.line(lambda x: g(x) ** 2, q1) * references.line(lambda x: g(x) ** 2, q2))
    assert abs(float(E.value(values(E, q1, q2, c))) - references.plane(g, g, q1, q2, c)) < 1e-10 * scale


@settings(max_examples=10)
@given(activations(), st.floats(0.3, 1.5))
def test_closed_form_equals_our_quadrature_and_mpmath(f, q):
    """For functions of one Gaussian, with f given once as an expression and once as a function that only JAX knows."""
    assume(f(u).has(u))
    unknown = functions.opaque(functions.to_jax(f(u), (u,)), "f", kinks=(-1.0, 0.0, 1.0))
    F, G = f(u) ** 2 + f(-u), unknown(u) ** 2 + unknown(-u)
    closed, numeric = expectation(F, (u,)), expectation(G, (u,))
    assert closed.tier == "closed form" and "quadrature" in numeric.tier
    want, scale = float(references.mean(F, q)), 1 + float(references.mean(f(u) ** 4, q)) ** 0.5
    for E in (closed, numeric):
        assert abs(float(E.value([jnp.asarray(q) for _ in E.needs])) - want) < 1e-12 * scale
