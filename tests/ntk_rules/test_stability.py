"""Values and derivatives at extreme correlations and variances, both precisions, never NaN or infinite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation
from tests.everyday import everyday

u, v, a = sp.symbols("u v a", real=True)
RELU, STEP = sp.Max, sp.Heaviside
F = {
    "relu": sp.Max(u, 0) * sp.Max(v, 0),
    "step": sp.Heaviside(u) * sp.Heaviside(v),
    "erf": sp.erf(u) * sp.erf(v),
    "gelu": u * v * (1 + sp.erf(u / sp.sqrt(2))) * (1 + sp.erf(v / sp.sqrt(2))) / 4,
    "elu": sp.Piecewise((u, u > 0), (sp.exp(u) - 1, True)) * sp.Piecewise((v, v > 0), (sp.exp(v) - 1, True)),
    "hard tanh": sp.Max(-1, sp.Min(u, 1)) * sp.Max(-1, sp.Min(v, 1)),
    "sin": sp.sin(u) * sp.sin(v),
}
GAPS = [0.0, 1e-15, 1e-12, 1e-8, 1e-4, 0.5, 1.0]
RHO = [s * (1 - g) for g in GAPS for s in (1, -1)]


def values(E, q1, q2, c, dtype):
    known = {(0, 0): q1, (0, 1): c, (1, 1): q2}
    return [jnp.asarray(known[e], dtype) for e in E.needs]


def exact(name, q1, q2, c):
    """The classical formulas in 40 digits at the numbers given (rounding past |rho| = 1 clipped)."""
    with mp.workdps(max(mp.mp.dps, 40)):
        q1, q2, c = map(mp.mpf, (q1, q2, c))
        rho = max(min(c / mp.sqrt(q1 * q2), mp.mpf(1)), mp.mpf(-1))
        t = mp.acos(rho)
        if name == "relu":  # Cho and Saul 2009, eq 6
            return mp.sqrt(q1 * q2) * (mp.sin(t) + (mp.pi - t) * mp.cos(t)) / (2 * mp.pi)
        if name == "step":
            return (mp.pi - t) / (2 * mp.pi)
        if name == "erf":  # Williams 1997, eq 11
            return 2 / mp.pi * mp.asin(2 * c / mp.sqrt((1 + 2 * q1) * (1 + 2 * q2)))
        return mp.exp(-(q1 + q2) / 2) * mp.sinh(c)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["relu", "erf", "sin", "step"])
def test_values_against_mpmath(name, dtype):
    E = expectation(F[name], (u, v))
    for q1, q2 in [(1.0, 1.0), (1e-12, 1e-12), (1e8, 1e8), (1e-12, 1e8), (0.3, 2.7)]:
        if name == "sin" and q1 > 1e6:
            continue  # exp(c - q) of 1e8: its rounded exponent alone is off by more than one
        for rho in RHO:
            a, b = dtype(q1), dtype(q2)
            c = dtype(rho * np.sqrt(float(a) * float(b)))
            want = exact(name, float(a), float(b), float(c))
            scale = abs(float(exact(name, float(a), float(a), float(a)))) ** 0.5
            scale *= abs(float(exact(name, float(b), float(b), float(b)))) ** 0.5
            if name == "sin":  # a difference of exponentials: rounding is relative to exp(-q/2), not to q
                scale = 1.0
            got = float(E.value(values(E, a, b, c, dtype)))
            # The step's arccos turns a rounding of c into its square root: half the digits at |rho| = 1.
            limit = (1e-7 if name == "step" else 1e-13) if dtype is np.float64 else (
                2e-3 if name == "step" else 2e-6
            )  # fmt: skip
            if name == "erf" and q1 == q2 == 1e8 and dtype is np.float64:
                limit = 1e-11  # arcsin of 1 - 5e-9: the rounding of c itself moves the true value by 1e-12
            assert abs(got - float(want)) <= limit * scale, (q1, q2, rho, got, want)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", everyday(F, ["elu", "hard tanh"]))
def test_values_and_gradients_are_finite_everywhere(name, dtype):
    E = expectation(F[name], (u, v))
    gradient = jax.jit(jax.vmap(jax.value_and_grad(E.value)))
    laws = []
    for q1, q2 in [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1e-12, 1e-12), (1e8, 1e8), (1e-12, 1e8)]:
        for rho in [*RHO, 1 + 1e-7, -1 - 1e-7]:
            laws.append(values(E, q1, q2, rho * np.sqrt(q1 * q2), dtype))
    value, slopes = gradient([jnp.stack(x) for x in zip(*laws, strict=True)])
    assert bool(jnp.all(jnp.isfinite(value)))
    for slope in slopes:
        assert bool(jnp.all(jnp.isfinite(slope)))


@pytest.mark.parametrize("name", ["relu", "step", pytest.param("gelu", marks=pytest.mark.long)])
def test_second_derivatives_are_finite(name):
    E = expectation(F[name], (u, v))
    for q, rho in [(1.0, 1.0), (1.0, -1.0), (0.0, 0.0), (1e-12, 1.0), (1e8, 0.5)]:
        start = values(E, q, q, rho * q, np.float64)
        for row in jax.hessian(E.value)(start):
            for entry in row:
                assert np.isfinite(entry)


def test_relu_ntk_gradient_at_equal_inputs():
    """Through x and x' the pieces combine: K(x, x) = |x|^2/2 for ReLU, so dK/dx' at x' = x is x/2."""
    E = expectation(F["relu"], (u, v))

    def kernel(x, y):
        return E.value(values(E, x @ x, y @ y, x @ y, np.float64))

    x = jnp.array([0.3, -1.2, 0.5])
    np.testing.assert_allclose(jax.grad(kernel, 1)(x, x), x / 2, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(kernel, 1)(x, -x), 0, atol=1e-12)
    assert np.isfinite(jax.grad(kernel)(0 * x, x)).all()


def test_equal_inputs_give_the_diagonal_exactly():
    E = expectation(F["relu"], (u, v))
    q = jnp.asarray(np.random.default_rng(0).lognormal(size=200), jnp.float32)
    assert bool(jnp.all(jnp.abs(E.value([q, q, q]) - q / 2) <= 1e-7 * q))


@pytest.mark.slow
def test_float32_tails_of_elu():
    """Large variances: exp(q/2) overflows, its product with the tail probability does not."""
    E = expectation(F["elu"], (u, v))
    single = float(E.value([jnp.float32(x) for x in (1e4, 5e3, 1e4)]))
    double = float(E.value([1e4, 5e3, 1e4]))
    assert abs(single - double) < 2e-6 * abs(double)


SMOOTH_TO_THE_EDGE = ("erf", "sin")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["relu", "erf", "sin"])
def test_derivatives_against_mpmath(name, dtype):
    """First and second derivatives in every entry, at variances far apart and correlations close to 1.

    Near |rho| = 1 a derivative of ReLU's dual is an angle, known to half the digits of c; its second one grows like
    1/sqrt(1 - rho^2), and is compared as far as c's own rounding leaves it a meaning.
    """
    E = expectation(F[name], (u, v))
    gradient, hessian = jax.jit(jax.grad(E.value)), jax.jit(jax.hessian(E.value))
    at = {entry: E.needs.index(entry) for entry in E.needs}
    for q1, q2 in [(1.0, 1.0), (0.3, 2.7), (1e-12, 1e-12), (1e-6, 4.0)]:
        for rho in (0.0, 0.5, -0.9, 1 - 1e-4, -1 + 1e-4, *([1 - 1e-8] if dtype is np.float64 else [])):
            a, b = dtype(q1), dtype(q2)
            c = dtype(rho * np.sqrt(float(a) * float(b)))
            law = values(E, a, b, c, dtype)
            first, second = gradient(law), hessian(law)
            near, eps = 1 - abs(rho), float(np.finfo(dtype).eps)
            exactly = 5000 * eps if dtype is np.float64 else 8 * eps  # 1e-12 and 1e-6
            slack = exactly if name in SMOOTH_TO_THE_EDGE or near > 0.01 else 2 * eps / near
            with mp.workdps(80):
                numbers = tuple(map(mp.mpf, (float(a), float(b), float(c))))
                for order, which in (((0, 0, 1), (0, 1)), ((1, 0, 0), (0, 0)), ((0, 1, 0), (1, 1))):
                    want = mp.diff(lambda *n: exact(name, *n), numbers, order)
                    size = mp.sqrt(q1 * q2) / (q1 if which == (0, 0) else q2 if which == (1, 1) else mp.sqrt(q1 * q2))
                    got = first[at[which]] if which in at else 0.0
                    if name == "sin":  # a difference of exponentials, rounded like them
                        size = max(size, 1)
                    limit = slack**0.5 if slack > exactly else slack
                    assert abs(float(got) - float(want)) <= limit * float(size), (a, b, c, order)
                want = mp.diff(lambda *n: exact(name, *n), numbers, (0, 0, 2))
                got, size = second[at[(0, 1)]][at[(0, 1)]], 1 / mp.sqrt(q1 * q2)
                assert abs(float(got) - float(want)) <= 4 * slack * float(max(abs(want), size)), (a, b, c)


@pytest.mark.parametrize(
    "F",
    [
        sp.Max(u, 0) * sp.Max(v, 0),
        sp.erf(u + a) * sp.erf(v + a),
        pytest.param(sp.tanh(u) * sp.tanh(v), marks=pytest.mark.long),
    ],
)
def test_both_variances_have_the_slopes_that_are_derived_for_each(F):
    """Of a symmetric F the slope in one variance is that in the other, with entries exchanged: against the expectation of Price's theorem
    for each, in arrays that broadcast, and with one of them moving alone."""
    E = expectation(F, (u, v), (a,) if F.has(a) else ())
    assert E._core.symmetric
    law = [jnp.array([[0.3], [2.0]]), jnp.array([0.1, -0.2, 0.25]), jnp.array([1.5, 0.7, 1.1])]
    given = [jnp.array(0.4)] * F.has(a)
    total = jax.jit(jax.grad(lambda moving, resting: jnp.sum(E.value([*resting, *moving], given))))
    slopes, alone = total(law, []), total(law[2:], law[:2])[0]
    for k, (entry, axis) in enumerate([((0, 0), 1), ((0, 1), 0), ((1, 1), 0)]):
        core = E._core.derivative(entry)
        want = jnp.sum(core.value([law[E.needs.index(e)] for e in core.needs], given), axis, keepdims=axis == 1)
        np.testing.assert_allclose(slopes[k], want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(alone, slopes[2], rtol=1e-12, atol=1e-14)


def test_what_is_not_symmetric_has_slopes_of_its_own():
    E = expectation(sp.Max(u, 0) * sp.erf(v), (u, v))
    assert not E._core.symmetric
