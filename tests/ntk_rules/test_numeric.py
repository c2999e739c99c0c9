"""The numerical tiers: right values, honest bounds, right derivatives, clear refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from scipy import special as scs

from ntk_rules import NoRule, expectation, functions
from ntk_rules.functions import logistic, softplus

from . import references

pytestmark = pytest.mark.slow

u, v, w, t = sp.symbols("u v w t")

SMOOTH = {
    "tanh": sp.tanh,
    "sigmoid": logistic,
    "swish": lambda z: z * logistic(z),
    "softplus": softplus,
    "softplus as jax traces it": lambda z: sp.Max(z, 0) + functions.log1p(sp.exp(-sp.Abs(z))),
    "mish": lambda z: z * sp.tanh(softplus(z)),
    "tanh gelu": lambda z: z * (1 + sp.tanh(0.7978845608028654 * (z + 0.044715 * z**3))) / 2,
    "arctan": sp.atan,
    "log cosh": lambda z: sp.log(sp.cosh(z)),
}
KINKED = {
    "soft sign": lambda z: z / (1 + sp.Abs(z)),
    "relu times erf": lambda z: sp.Max(z, 0) * sp.erf(z),
    "tanh of elu": lambda z: sp.tanh(sp.Piecewise((z, z > 0), (functions.expm1(z), True))),
    "relu of tanh": lambda z: sp.Max(sp.tanh(z), 0),
}
LAW = (1.3, 0.8, 0.4)


def numpy_of(f):
    evaluate = jax.jit(functions.to_jax(f(u), (u,)))
    return lambda x: np.asarray(evaluate(x))


def values(E, q1, q2, c):
    known = {(0, 0): q1, (0, 1): c, (1, 1): q2}
    return [jnp.asarray(known[e]) for e in E.needs]


def check(f, g, law, E):
    got = float(E.value(values(E, *law)))
    want = references.plane(numpy_of(f), numpy_of(g), *law)
    scale = np.sqrt(references.line(lambda x: numpy_of(f)(x) ** 2, law[0])) + 0.1
    assert abs(got - want) < 1e-11 * scale, (got, want)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name):
    f = SMOOTH[name]
    E = expectation(f(u) * f(v), (u, v))
    assert E.tier == "Hermite series"
    assert 0 < E.bound <= 1e-12
    check(f, f, LAW, E)
    check(f, f, (1.1, 1.0, 1.0), E)


@pytest.mark.parametrize("name", ["soft sign", "relu of tanh"])
def test_two_kinked_functions(name):
    f = KINKED[name]
    E = expectation(f(u) * f(v), (u, v))
    assert E.tier == "quadrature split at the kinks"
    assert 0 < E.bound <= 1e-12
    for law in (LAW, (1.1, 1.0, 1.0), (1.0, 1.2, -1.0)):
        check(f, f, law, E)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINKED)
def test_kinked_functions_and_their_derivatives(name):
    f = KINKED[name]
    E = expectation(f(u) * f(v), (u, v))
    check(f, f, LAW, E)
    gradient_check(E)


def gradient_check(E):
    start, step = values(E, *LAW), 1e-5
    gradient = jax.grad(E.value)(start)
    for k in range(len(start)):
        moved = [[a + s * step * (i == k) for i, a in enumerate(start)] for s in (1, -1)]
        slope = (E.value(moved[0]) - E.value(moved[1])) / (2 * step)
        assert abs(gradient[k] - slope) < 1e-8  # of the finite difference


@pytest.mark.parametrize("f, g", [(SMOOTH["tanh"], sp.Abs), (SMOOTH["swish"], KINKED["soft sign"])])
def test_one_kink_keeps_the_series_geometric(f, g):
    E = expectation(f(u) * g(v), (u, v))
    assert E.tier == "Hermite series"
    check(f, g, LAW, E)


def test_derivatives_of_smooth_and_mixed_pairs():
    gradient_check(expectation(sp.tanh(u) * sp.tanh(v), (u, v)))
    gradient_check(expectation(sp.Max(u, 0) * sp.tanh(v), (u, v)))


@pytest.mark.parametrize(
    "f, q",
    [(sp.tanh, 1.0), (sp.tanh, 16.0), (sp.tanh, 100.0), (sp.atan, 1.0), (sp.atan, 16.0), (sp.atan, 400.0)],
)
def test_error_estimate_is_honest(f, q):
    """At rho = 1 the exact value is E[f^2], by mpmath at 30 digits: `error` must cover the difference."""
    E = expectation(f(u) * f(v), (u, v))
    law = values(E, q, q, q)
    with mp.workdps(30):
        g = sp.lambdify(u, f(u), "mpmath")
        s = mp.sqrt(q)
        edges = [-14, -6, -3, -1, -1 / s, 0, 1 / s, 1, 3, 6, 14]
        exact = mp.quad(lambda x: g(s * x) ** 2 * mp.npdf(x), sorted(edges))
    true_error = abs(float(E.value(law)) - float(exact))
    rounding = 4e-15
    assert true_error <= float(E.error(law)) + rounding
    if q <= 1:
        assert true_error < 1e-13


def test_float32():
    E = expectation(sp.tanh(u) * sp.tanh(v), (u, v))
    single = [a.astype(jnp.float32) for a in values(E, *LAW)]
    assert E.value(single).dtype == jnp.float32
    assert abs(float(E.value(single)) - float(E.value(values(E, *LAW)))) < 1e-6


def test_vmap_equals_broadcasting():
    E = expectation(sp.tanh(u) * sp.tanh(v), (u, v))
    q = jnp.linspace(0.5, 2, 5)
    c = 0.5 * jnp.sqrt(q[:, None] * q)
    pair = jax.vmap(jax.vmap(lambda a, b, d: E.value((a, b, d)), (None, 0, 0)), (0, 0, None))
    np.testing.assert_allclose(pair(q, c, q), E.value((q[:, None], c, q)), rtol=1e-14)


def test_independence_separates_gates():
    F = u * logistic(v) * w * logistic(t)
    E = expectation(F, (u, v, w, t), independent=[(0, 1), (0, 3), (1, 2), (2, 3)])
    assert (0, 2) in E.needs and (0, 0) not in E.needs
    pair = expectation(logistic(v) * logistic(t), (v, t))
    got = E.value([{(0, 2): 0.3, (1, 1): 1.0, (1, 3): 0.5, (3, 3): 2.0}[e] for e in E.needs])
    assert abs(float(got) - 0.3 * float(pair.value((1.0, 0.5, 2.0)))) < 1e-14


def test_mixed_smooth_functions_of_two():
    E = expectation(sp.tanh(u * v), (u, v))
    got = float(E.value([1.0, 1.0, 1.0]))
    assert abs(got - references.line(lambda x: np.tanh(x * x), 1.0)) < 1e-11


def test_sampling_states_its_error_and_is_reproducible():
    F = sp.exp(u) / (sp.exp(u) + sp.exp(v) + sp.exp(w))
    with pytest.raises(
        NoRule,
        match=r"quasi-Monte Carlo: reaches .* wanted 1\.0e-12; a tolerance above that, and of 1e-05 at least, accepts it",
    ):
        expectation(F, (u, v, w))
    E = expectation(F, (u, v, w), tolerance=1e-3)
    assert E.tier == "quasi-Monte Carlo"
    law = [jnp.asarray(1.0 if i == j else 0.2) for i, j in E.needs]
    value, error = float(E.value(law)), float(E.error(law))
    assert 0 < error < 3e-3
    assert abs(value - 1 / 3) < error  # by symmetry the mean is 1/3
    assert value == float(E.value(law))


def test_user_function():
    f = functions.opaque(lambda x: jnp.tanh(x) ** 3, "f")
    E = expectation(f(u) * f(v), (u, v))
    plain = expectation(sp.tanh(u) ** 3 * sp.tanh(v) ** 3, (u, v))
    assert abs(float(E.value((1.0, 0.5, 1.0))) - float(plain.value((1.0, 0.5, 1.0)))) < 1e-13
    kinked = functions.opaque(lambda x: jnp.abs(x) / (1 + jnp.abs(x)), "g", kinks=(0.0,))
    E = expectation(kinked(u) ** 2, (u,))
    assert abs(float(E.value((1.0,))) - references.line(lambda x: (np.abs(x) / (1 + np.abs(x))) ** 2, 1.0)) < 1e-12


@pytest.mark.parametrize("F, said", [(sp.exp(u**2), "infinite"), (sp.exp(sp.exp(u)), "grows too fast")])
def test_divergent_expectations_are_refused(F, said):
    with pytest.raises(NoRule, match=said):
        expectation(F, (u,))


def test_a_sampled_value_is_not_taken_for_exact_because_it_is_at_one_parameter():
    """At b = 1 the function vanishes, and so does the spread of its samples."""
    b = sp.Symbol("b", real=True)
    with pytest.raises(NoRule, match="moves with .'a0'."):
        expectation(sp.Max(logistic(u) - b, 0), (u,), (b,))


@pytest.mark.parametrize(
    "f", [lambda z: sp.log(sp.cosh(z)), lambda z: 1 - sp.cosh(z) + z * sp.tanh(z), lambda z: sp.exp(3 * z) * sp.tanh(z)]
)
def test_rounding_of_the_formula_and_what_is_out_of_reach_are_in_the_error(f):
    """Differences of nearly equal terms at small variances, growth that outruns the nodes at large ones."""
    for F, G in ((f(u), f(u)), (f(u) * f(v), f(u) ** 2)):
        E = expectation(F, (u, v), tolerance=0.5)
        for q in (1e-12, 1e-6, 0.01, 1.0, 9.0, 64.0):
            law = [jnp.asarray(q) for _ in E.needs]
            want = references.mean(G, q)
            assert abs(float(E.value(law)) - float(want)) <= float(E.error(law)), (F, q)


def test_a_tolerance_out_of_reach_is_refused():
    with pytest.raises(NoRule, match=r"reaches .* wanted 1\.0e-18"):
        expectation(sp.tanh(u) * sp.tanh(v), (u, v), tolerance=1e-18)


@pytest.mark.parametrize(
    "F, f, g, kinks",
    [
        (sp.sin(u) * sp.erf(u) * sp.Max(v, 0), lambda x: np.sin(x) * scs.erf(x), lambda y: np.maximum(y, 0), ([], [0.0])),
        (sp.sin(u) * sp.Max(u, 0) * sp.Max(v, 0), lambda x: np.sin(x) * np.maximum(x, 0), lambda y: np.maximum(y, 0), ([0.0], [0.0])),
    ],
    ids=["series", "plane"],
)  # fmt: skip
def test_a_wave_times_two_steps_is_integrated_with_a_bound(F, f, g, kinks):
    """It would need the bivariate normal integral at complex limits, which the engine has not: quadrature, and it says so."""
    E = expectation(F, (u, v))
    assert E.tier in ("Hermite series", "quadrature split at the kinks") and 0 < E.bound <= 1e-12
    for law in (LAW, (1.0, 1.2, -0.8)):
        want = references.split_plane(f, g, law, kinks)
        assert abs(float(E.value(values(E, *law))) - want) <= float(E.error(values(E, *law))) + 1e-13
