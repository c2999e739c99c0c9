"""Kinks along lines in the plane of two Gaussians: values, derivatives and errors, each beside an independent derivation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import NoRule, expectation, functions
from ntk_rules.functions import expm1, logistic
from ntk_rules.kinked_plane import TIER, kinked_plane
from ntk_rules.question import canonical

from . import references

pytestmark = pytest.mark.slow

u, v = sp.symbols("u v", real=True)
b = sp.Symbol("b", real=True)


def step(x):
    return sp.Heaviside(x, sp.Rational(1, 2))


# F and the lines a u + b v = 0 along which it, or its derivative, jumps.
THROUGH_ZERO = {
    "gated": (sp.tanh(u) * sp.Max(u + v, 0), [(1, 1)]),
    "pooled": (sp.tanh(sp.Max(u, v)), [(1, -1)]),
    "pooled with zero": (sp.tanh(sp.Max(u, v, 0)), [(1, -1), (1, 0), (0, 1)]),
    "two relus": (logistic(u) * sp.Max(v, 0) * sp.Max(u + v, 0), [(0, 1), (1, 1)]),
    "two jumps": (logistic(u + v / 2) * step(u + 2 * v) * step(u - v), [(1, 2), (1, -1)]),
    "cube of a step": (sp.tanh(u) * u * step(u + v) ** 3, [(1, 1)]),
    "nonlinear in a step": (sp.exp(sp.tanh(u) * step(u + v)), [(1, 1)]),
    "of a product": (sp.tanh(sp.Max(u * v, 0)), [(1, 0), (0, 1)]),
    "elu": (sp.Piecewise((u + v, u + v > 0), (expm1(u + v), True)) * sp.tanh(u), [(1, 1)]),
}
LAWS = [(1.3, 0.8, 0.4), (1.0, 1.0, -0.7), (2.0, 0.5, 0.95)]


def values(E, law):
    known = dict(zip(((0, 0), (1, 1), (0, 1)), law, strict=True))
    return [jnp.asarray(known[e]) for e in E.needs]


def numpy_of(F):
    return jax.jit(functions.to_jax(F, (u, v)))


@pytest.mark.parametrize("name", THROUGH_ZERO)
def test_values(name):
    F, lines = THROUGH_ZERO[name]
    E, f = expectation(F, (u, v)), numpy_of(F)
    assert TIER in E.tier and E.bound <= 1e-12
    stacked = values(E, jnp.asarray(LAWS).T)
    want = np.array([references.polar(f, law, lines) for law in LAWS])
    off, stated = np.abs(E.value(stacked) - want), np.asarray(E.error(stacked))
    assert (off < 1e-13).all() and (off < stated).all()


@pytest.mark.parametrize("name", ["pooled", "two jumps", "nonlinear in a step"])
def test_first_derivatives(name):
    F, lines = THROUGH_ZERO[name]
    E, f = expectation(F, (u, v)), numpy_of(F)
    gradient, h = jax.grad(E.value)(values(E, LAWS[0])), 1e-3
    for slope, entry in zip(gradient, E.needs, strict=True):
        k = ((0, 0), (1, 1), (0, 1)).index(entry)
        moved = [tuple(x + d * h * (k == n) for n, x in enumerate(LAWS[0])) for d in (-2, -1, 1, 2)]
        near = [references.polar(f, law, lines) for law in moved]
        assert (
            abs(float(slope) - (near[0] - 8 * near[1] + 8 * near[2] - near[3]) / (12 * h)) < 1e-10
        )  # of the difference


def test_the_rules_and_the_quadrature_agree():
    """Functions that have closed forms, given to the quadrature all the same; lines that miss 0, and parameters in them."""
    for F in (
        sp.Max(u + v - 1, 0) * sp.Max(u - v / 2 + b, 0),
        sp.erf(u) * step(2 * u - v + b) * v,
        sp.Max(u, v, b),
    ):
        closed = expectation(F, (u, v), (b,))
        assert closed.tier == "closed form"
        numeric = kinked_plane(canonical(F, (u, v), (b,), None, frozenset(), None))
        shifts = jnp.array([-2.5, 0.0, 0.3])
        known = dict(zip(((0, 0), (1, 1), (0, 1)), jnp.asarray(LAWS).T, strict=True))
        want = closed.value([known[e] for e in closed.needs], (shifts,))
        assert float(jnp.max(jnp.abs(numeric.compute(known, (shifts,)) - want))) < 1e-12


@pytest.mark.parametrize("F, kink", [(sp.tanh(u) * sp.Max(u - 2 * v + 1, 0), True), (THROUGH_ZERO["pooled"][0], False)])
def test_degenerate_laws_against_mpmath(F, kink):
    """At correlation +-1 the plane is a line: 50 digits of the one-dimensional integral; at zero variance likewise."""
    E = expectation(F, (u, v))
    cases = [(1.0, 1), (1.0, -1), (0.25, 2), (4.0, -1)]
    stacked = values(E, jnp.array([(q, q * ratio**2, q * ratio) for q, ratio in cases]).T)
    for (q, ratio), got, stated in zip(cases, E.value(stacked), E.error(stacked), strict=True):
        places = [mp.mpf(1) / (2 * ratio - 1)] if kink else []
        want = references.mean(F.subs(v, ratio * u), q, places)
        assert abs(float(got) - float(want)) <= min(1e-13, float(stated)) + 1e-16
    want = references.mean(F.subs(v, 0), 1.0)
    assert abs(float(E.value(values(E, (1.0, 0.0, 0.0)))) - float(want)) < 1e-14


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_and_gradients_are_finite_everywhere(dtype):
    E = expectation(THROUGH_ZERO["two relus"][0], (u, v))
    laws = [
        (q1, q2, rho * np.sqrt(q1 * q2))
        for q1, q2 in [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1e-12, 1e-12), (1e8, 1e8), (1e-12, 1e8)]
        for rho in (1, -1, 1 - 1e-15, 1e-12 - 1, 1 - 1e-8, 0.5, 0.0, 1 + 1e-7)
    ]
    stacked = [jnp.asarray(x, dtype) for x in zip(*(values(E, law) for law in laws), strict=True)]
    value, slopes = jax.jit(jax.vmap(jax.value_and_grad(E.value)))(stacked)
    assert value.dtype == dtype and bool(jnp.all(jnp.isfinite(value)))
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)
    if dtype is np.float32:
        exact = E.value([jnp.asarray(x, float) for x in values(E, LAWS[0])])
        assert abs(float(E.value([x.astype(dtype) for x in values(E, LAWS[0])])) - float(exact)) < 1e-6


def test_derivative_by_a_parameter_and_independence():
    F = sp.tanh(u) * sp.Max(u + v - b, 0)
    E = expectation(F, (u, v), (b,), independent=[(0, 1)])
    assert E.needs == ((0, 0), (1, 1))
    slope = jax.grad(lambda s: E.value((1.0, 0.7), (s,)))(0.4)
    near = [float(E.value((1.0, 0.7), (0.4 + d,))) for d in (1e-5, -1e-5)]
    assert abs(float(slope) - (near[0] - near[1]) / 2e-5) < 1e-10
    want = expectation(F, (u, v), (b,))
    assert abs(near[0] - float(want.value((1.0, 0.0, 0.7), (0.4 + 1e-5,)))) < 1e-14


def test_errors_are_not_understated():
    """Steep and growing functions, at a tolerance that lets them pass; exact values at correlation 1 by mpmath."""
    for F in (
        sp.tanh(20 * u) * sp.Max(u + v, 0),
        sp.exp(u / 2) * sp.tanh(sp.Max(u, v)),
        u**6 * logistic(v) * step(u + v),
    ):
        E = expectation(F, (u, v), tolerance=0.5)
        sizes = jnp.array([0.01, 1.0, 16.0, 100.0])
        stacked = values(E, (sizes, sizes, sizes))
        for q, got, stated in zip(sizes, E.value(stacked), E.error(stacked), strict=True):
            off = abs(float(got) - float(references.mean(F.subs(v, u), float(q))))
            assert off <= stated, (F, q, off, stated)


def test_what_is_refused_says_why():
    with pytest.raises(NoRule, match="not along a straight line"):
        expectation(sp.Max(u * v - 1, 0) * logistic(u), (u, v))
