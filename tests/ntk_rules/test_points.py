"""Jumps at arguments that cannot move: E[F] at variance zero is F there as it is written, as JAX computes it.

True values by hand: where z has variance zero it is its mean, F(mean) is a number, and the other argument is integrated alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation, explain

u, v, b = sp.symbols("u v b", real=True)
LAWS = [(0.0, 0.0, 1.3), (1.3, 0.0, 0.0), (0.0, 0.0, 0.0), (1.3, 0.5, 0.9)]


def where(condition: sp.Basic, yes: object, no: object) -> sp.Expr:
    return sp.Piecewise((yes, condition), (no, True))


# F, F(0) as JAX has it, E[F(z)] at a positive variance, E[F(u) F(v)] at the last law.
ANGLE = np.arcsin(0.5 / np.sqrt(1.3 * 0.9))
JUMPS = {
    ">": (lambda z: where(z > 0, 1, 0), 0.0, 0.5, 0.25 + ANGLE / (2 * np.pi)),
    ">=": (lambda z: where(z >= 0, 1, 0), 1.0, 0.5, 0.25 + ANGLE / (2 * np.pi)),
    "<=": (lambda z: where(z <= 0, 0, 1), 0.0, 0.5, 0.25 + ANGLE / (2 * np.pi)),
    "plus or minus one": (lambda z: where(z >= 0, 1, -1), 1.0, 0.0, 2 * ANGLE / np.pi),
    "sign": (sp.sign, 0.0, 0.0, 2 * ANGLE / np.pi),
    "heaviside": (lambda z: sp.Heaviside(z, sp.Rational(3, 10)), 0.3, 0.5, 0.25 + ANGLE / (2 * np.pi)),
    "only at zero": (lambda z: where(sp.Eq(z, 0), 5, 1), 5.0, 1.0, 1.0),
}


def at(E, law: tuple[float, float, float], parameters: tuple[float, ...] = (), dtype: type = np.float64) -> float:
    known = dict(zip(((0, 0), (0, 1), (1, 1)), law, strict=True))
    return float(E.value([jnp.asarray(known[e], dtype) for e in E.needs], parameters))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", JUMPS)
def test_pairs_and_means(name: str, dtype: type) -> None:
    F, here, mean, pair = JUMPS[name]
    E = expectation(F(u) * F(v), (u, v))
    limit = 1e-13 if dtype is np.float64 else 1e-6
    for law, want in zip(LAWS, (here * mean, mean * here, here * here, pair), strict=True):
        assert abs(at(E, law, dtype=dtype) - want) < limit, law
    single = expectation(F(u), (u,))
    assert abs(at(single, (0.0, 0.0, 1.0), dtype=dtype) - here) < limit
    assert abs(at(single, (1.3, 0.0, 1.0), dtype=dtype) - mean) < limit


def test_what_is_continuous_is_as_before() -> None:
    """No variance is read that the formula does not read, and nothing is said."""
    E = expectation(sp.Max(u, 0) * where(v > 0, v, 0), (u, v))
    assert not any("variance of" in step for step in E.steps)
    assert at(E, (0.0, 0.0, 1.0)) == 0.0
    assert expectation(sp.sign(u), (u,)).needs == ()


def test_what_has_no_value_at_zero_is_not_asked_there() -> None:
    """z/|z| is no number at 0; its expectation is still that of the sign."""
    E = expectation(u / sp.Abs(u) * v / sp.Abs(v), (u, v))
    assert abs(at(E, LAWS[3]) - 2 * ANGLE / np.pi) < 1e-12


def test_means_decide_at_run_time() -> None:
    """A jump at u + b = 0: b is known at run time alone."""
    E = expectation(where(u > 0, 1, 0), (u,), (b,), means=(b,))
    assert [at(E, (0.0, 0.0, 0.0), (x,)) for x in (-1e-9, 0.0, 1e-9)] == [0.0, 0.0, 1.0]


@pytest.mark.slow
def test_means_decide_at_run_time_in_quadrature_too() -> None:
    mixed = expectation(where(u >= 0, 1, 0) * sp.tanh(v), (u, v), (b,), means=(b, 2))
    x, weights = np.polynomial.hermite_e.hermegauss(120)
    want = np.sum(weights * np.tanh(2 + x)) / np.sqrt(2 * np.pi)
    assert [round(at(mixed, (0.0, 0.0, 1.0), (p,)), 9) for p in (-1e-9, 0.0)] == [0.0, round(want, 9)]


def test_jumps_across_two_gaussians() -> None:
    """1[u > v] where u and v are one and the same, and 1[u + v >= 0] where both are zero."""
    E = expectation(where(u > v, 1, 0) * u**2, (u, v))
    assert at(E, (2.0, 2.0, 2.0)) == 0.0 and abs(at(E, (2.0, 0.0, 2.0)) - 1.0) < 1e-14
    both = expectation(where(u + v >= 0, 1, 0), (u, v))
    assert [at(both, law) for law in LAWS] == [0.5, 0.5, 1.0, 0.5]


@pytest.mark.slow
def test_a_jump_across_two_gaussians_in_the_plane() -> None:
    smooth = expectation(where(u >= v, sp.tanh(u) ** 2, 0), (u, v))
    x, weights = np.polynomial.hermite_e.hermegauss(160)
    assert abs(at(smooth, (1.0, 1.0, 1.0)) - np.sum(weights * np.tanh(x) ** 2) / np.sqrt(2 * np.pi)) < 1e-10


@pytest.mark.slow
def test_numerical_tiers_and_their_errors() -> None:
    F = lambda z: where(z > 0, 1, 0) * sp.tanh(z + 1)
    E = expectation(F(u) * F(v), (u, v))
    assert E.tier != "closed form"
    assert at(E, LAWS[0]) == at(E, LAWS[2]) == 0.0
    assert float(E.error([jnp.asarray(x) for x in LAWS[2]])) == 0.0


def test_rows_of_either_kind_mapped_and_differentiated() -> None:
    """One array with zero and other variances; derivatives are those of the rules, finite."""
    E = expectation(where(u > 0, 1, 0) * where(v > 0, 1, 0), (u, v))
    columns = [jnp.array(c) for c in zip(*LAWS, strict=True)]
    together = E.value(columns)
    np.testing.assert_array_equal(together, jax.vmap(lambda *law: E.value(law))(*columns))
    np.testing.assert_allclose(together, [0, 0, 0, JUMPS[">"][3]], atol=1e-15)
    slopes = jax.grad(lambda *law: jnp.sum(E.value(law)), argnums=(0, 1, 2))(*columns)
    assert all(np.isfinite(s).all() for s in slopes)


def test_the_derivation_says_it() -> None:
    assert "at zero variance of z_0: the mean of 0" in explain(where(u > 0, 1, 0) * where(v > 0, 1, 0))


def test_a_tie_of_two_where_both_have_stopped_to_differ() -> None:
    """The two halves of the slope of max(relu u, relu v) add up at u = v, though their product is zero wherever u and v differ."""
    up, down = (sp.Heaviside(s * (sp.Max(0, u) - sp.Max(0, v)), sp.Rational(1, 2)) for s in (1, -1))
    both = expectation(sp.Heaviside(u, 0) * sp.Heaviside(v, 0) * up * down, (u, v))
    assert abs(at(both, (1.0, 1.0, 1.0)) - 1 / 8) < 1e-14
    assert at(both, (1.0, 0.5, 1.0)) == 0.0
    assert at(both, (0.0, 0.0, 0.0)) == 0.0


def test_cases_that_are_not_chosen_count_nothing() -> None:
    """Where a case is no number that a parameter does not choose, here tanh(u / 0), the other one is what there is."""
    a = sp.Symbol("a", real=True)
    F = where(a > 0, sp.tanh(u / a), v)
    E = expectation(F * F, (u, v), (a,))
    assert E.needs == ((0, 0), (1, 1))
    known = [jnp.asarray(1.3), jnp.asarray(0.7)]
    assert abs(float(E.value(known, (0.0,))) - 0.7) < 1e-15
    assert float(E.error(known, (0.0,))) < 1e-8
    assert abs(float(E.value(known, (-1.0,))) - 0.7) < 1e-15
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    assert abs(float(E.value(known, (2.0,))) - weights @ np.tanh(np.sqrt(1.3) * nodes / 2) ** 2 / weights.sum()) < 1e-12
