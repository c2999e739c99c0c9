"""Functions that round to whole numbers: against sums over their jumps that were derived otherwise, and their derivatives against densities.

E[F(u) G(v)] = int F(s_u x) E[G(v) | x] dx, the inner mean by error functions, the outer integral by Gauss-Legendre between the jumps of F and
around those of G.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sympy as sp

from ntk_rules import NoRule, expectation, stairs
from ntk_rules import functions as nf

u, v = sp.symbols("u v", real=True)
WHOLE, HALVES = np.arange(-60.0, 61), np.arange(-60.0, 61) + 0.5
UP = scipy.special.ndtr

# SymPy's function, NumPy's, and where it jumps.
STAIRS: dict[str, tuple[Callable, Callable, np.ndarray]] = {
    "floor": (nf.floor, np.floor, WHOLE),
    "ceiling": (nf.ceiling, np.ceil, WHOLE),
    "trunc": (nf.trunc, np.trunc, WHOLE),
    "nearest": (nf.round_even, np.round, HALVES),
    "tanh of floor": (lambda z: sp.tanh(nf.floor(z)), lambda z: np.tanh(np.floor(z)), WHOLE),
    "relu of floor": (lambda z: sp.Max(nf.floor(2 * z), 0), lambda z: np.maximum(np.floor(2 * z), 0), WHOLE / 2),
    "step": (lambda z: sp.Heaviside(3 * z - 1), lambda z: (3 * z > 1) * 1.0, np.array([1 / 3])),
    "parity": (lambda z: 1 - 2 * (nf.floor(z) - 2 * nf.floor(z / 2)), lambda z: 1 - 2 * (np.floor(z) % 2), WHOLE),
    "of a curve": (lambda z: nf.round_even(2 * sp.tanh(z)), lambda z: np.round(2 * np.tanh(z)), np.arctanh([-0.75, -0.25, 0.25, 0.75])),
}  # fmt: skip
LAWS = [
    (1.0, 0.5, 1.0),
    (1.0, 1 - 1e-6, 1.0),
    (2.0, -1.2, 3.0),
    (0.01, 0.005, 0.01),
    (1.3, -1.29999, 1.3),
    (7.0, 4.0, 5.0),
]


def by_conditioning(f: Callable, g: Callable, jumps: np.ndarray, others: np.ndarray, law: tuple[float, ...]) -> float:
    """E[F(u) G(v)] of two functions that are constant between their jumps."""
    q_u, c, q_v = law
    s_u, s_v = math.sqrt(q_u), math.sqrt(q_v)
    rho = c / (s_u * s_v)
    w = math.sqrt(1 - rho * rho)
    others = others[np.abs(others) < 11 * s_v]
    ends = np.concatenate([[others[0] - 1], others, [others[-1] + 1]])
    heights = g((ends[1:] + ends[:-1]) / 2)
    edges = {-11.0, 11.0, *(x for x in jumps / s_u if abs(x) < 11)}
    for y, k in itertools.product(others / s_v, (-9, -6, -3, -1, 0, 1, 3, 6, 9)):
        edges |= {x for x in [(y + k * w) / rho] if abs(x) < 11}
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for low, high in itertools.pairwise(sorted(edges)):
        x = (low + high) / 2 + (high - low) / 2 * nodes
        inner = heights[0] + UP((rho * x[:, None] - others / s_v) / w) @ np.diff(heights)
        density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        total += float(f(np.float64(s_u * (low + high) / 2)) * (high - low) / 2 * np.sum(weights * density * inner))
    return total


PAIRS = [
    ("floor", "floor"), ("nearest", "ceiling"), ("trunc", "nearest"), ("tanh of floor", "relu of floor"), ("parity", "step"),
    ("of a curve", "floor"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "laws"), [
    pytest.param(PAIRS[3], LAWS[:2], id="some", marks=pytest.mark.long),
    *(pytest.param(p, LAWS, id=" and ".join(p), marks=pytest.mark.slow) for p in PAIRS),
])  # fmt: skip
def test_pairs(names: tuple[str, str], laws: list[tuple[float, float, float]]) -> None:
    (f, own_f, jumps), (g, own_g, others) = (STAIRS[name] for name in names)
    found = expectation(f(u) * g(v), (u, v))
    assert found.tier == "sums over jumps" and found.bound < 1e-12
    for law in laws:
        want = by_conditioning(own_f, own_g, jumps, others, law)
        scale = math.sqrt(
            math.prod(float(np.mean(h(math.sqrt(q) * DRAWS) ** 2)) for h, q in ((own_f, law[0]), (own_g, law[2])))
        )
        assert abs(float(found.value(law)) - want) <= 2e-13 * max(scale, abs(want), 1e-3), law
        assert float(found.error(law)) <= 1e-11 * max(scale, 1e-3)


DRAWS = np.random.default_rng(0).standard_normal(10_000)


def test_one_gaussian() -> None:
    """Sums over the cells; on the diagonal pairs are what one Gaussian is; E[(u mod 1)^2] is 1/3 at large variances."""
    square, pair = expectation(nf.floor(u) ** 2, (u,)), expectation(nf.floor(u) * nf.floor(v), (u, v))
    for q in (0.01, 1.0, 50.0):
        edges = np.arange(-90.0, 91) / math.sqrt(q)
        want = float(
            np.sum(np.arange(-90.0, 90) ** 2 * np.where(edges[:-1] < 0, np.diff(UP(edges)), -np.diff(UP(-edges))))
        )
        assert abs(float(square.value((q,))) - want) < 1e-12 * max(want, 1)
        assert abs(float(pair.value((q, q, q))) - want) < 1e-12 * max(want, 1)
        flipped = float(pair.value((q, -q, q)))  # floor(-u) = -1 - floor(u) almost surely
        assert abs(flipped - (0.5 - want)) < 1e-12 * max(want, 1)
    rest = expectation((u - nf.floor(u)) ** 2, (u,))
    assert abs(float(rest.value((4.0,))) - 1 / 3) < 1e-12


@pytest.mark.long
def test_a_line_and_stairs() -> None:
    """E[(u + F(u)) (v + G(v))] by its four parts, of which Stein's lemma gives two."""
    f, g = u - nf.floor(u) / 2, 3 * v + nf.round_even(v)
    law = (1.3, 0.7, 0.8)
    both = expectation(nf.floor(u) * nf.round_even(v), (u, v)).value(law)
    slopes = [
        float(np.sum(np.exp(-(at**2) / (2 * q)) / math.sqrt(2 * math.pi * q)))
        for at, q in ((WHOLE, 1.3), (HALVES, 0.8))
    ]
    want = 3 * 0.7 - 1.5 * 0.7 * slopes[0] + 0.7 * slopes[1] - both / 2
    assert abs(float(expectation(f * g, (u, v)).value(law)) - want) < 1e-12


@pytest.mark.long
def test_derivatives() -> None:
    """d E / d Cov = sum of the joint density over all pairs of jumps (Price's theorem); by the variances differences tell."""
    found = expectation(nf.floor(u) * nf.round_even(v), (u, v))
    law = (1.3, 0.4, 0.9)
    precision = np.linalg.inv([[1.3, 0.4], [0.4, 0.9]])
    a, b = np.meshgrid(WHOLE, HALVES)
    density = np.exp(-(precision[0, 0] * a**2 + 2 * precision[0, 1] * a * b + precision[1, 1] * b**2) / 2)
    want = density.sum() * math.sqrt(np.linalg.det(precision)) / (2 * math.pi)
    slopes = jax.jit(jax.grad(found.value))
    slope = lambda c: slopes((1.3, c, 0.9))[1]
    assert abs(float(slope(0.4)) - want) < 1e-12
    curve = jax.jit(jax.grad(slope))(0.4)
    assert abs(float(curve) - float(slope(0.4 + 1e-5) - slope(0.4 - 1e-5)) / 2e-5) < 1e-7
    for k in (0, 2):
        moved = [(*law[:k], law[k] + step, *law[k + 1 :]) for step in (-1e-4, 1e-4)]
        difference = float(found.value(moved[1]) - found.value(moved[0])) / 2e-4
        assert abs(float(slopes(law)[k]) - difference) < 1e-9
    one = expectation(nf.floor(u) ** 2, (u,))
    difference = float(one.value((1.3 + 1e-4,)) - one.value((1.3 - 1e-4,))) / 2e-4
    assert abs(float(jax.jit(jax.grad(lambda q: one.value((q,))))(1.3)) - difference) < 1e-7


def test_sums_over_jumps_are_traced_once_for_all_stairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are derived, that is, at variances that tell how exact they are."""
    expectation(nf.floor(u) * nf.floor(v), (u, v))
    traced, usual = [], stairs._joint
    monkeypatch.setattr(stairs, "_joint", lambda *sides: traced.append(sides) or usual(*sides))
    assert expectation(nf.floor(u) * nf.ceiling(2 * v), (u, v)).tier == "sums over jumps"
    assert not traced


@pytest.mark.long
def test_at_zero_variance_as_written() -> None:
    """A half is rounded to the even number or away from zero, and -0.5 up to 0."""
    shifted = [rule(u + sp.Rational(1, 2)) for rule in (nf.round_even, nf.round_away, nf.floor, nf.ceiling, nf.trunc)]
    assert [float(expectation(f, (u,)).value((0.0,))) for f in shifted] == [0.0, 1.0, 0.0, 1.0, 0.0]
    pair = expectation(nf.ceiling(u + sp.Rational(1, 2)) * nf.floor(v), (u, v))
    assert abs(float(pair.value((0.0, 0.0, 1.0))) + 0.5) < 1e-14


def test_out_of_its_window() -> None:
    """Beyond the variance up to which the jumps are known there is no number."""
    found = expectation(nf.floor(u) * nf.floor(v), (u, v))
    assert 100 < found.holds(True) < found.holds(False) < 250
    for law in ((200.0, 1.0, 1.0), (1.0, 1.0, 200.0), (np.nan, 0.5, 1.0)):
        assert np.isnan(float(found.value(law)))
    beside = found.value((np.array([1.0, np.nan, 1.0, 200.0]), np.array([0.5, 0.5, 1 - 1e-6, 0.5]), np.ones(4)))
    alone = [found.value(law) for law in ((1.0, 0.5, 1.0), (1.0, 1 - 1e-6, 1.0))]
    np.testing.assert_allclose(np.asarray(beside)[[0, 2]], np.asarray(alone), rtol=1e-13)
    assert np.isnan(float(expectation(nf.floor(u) ** 2, (u,)).value((200.0,))))
    assert np.isnan(float(expectation(nf.floor(u) ** 2, (u,)).value((np.nan,))))
    bounded = expectation(nf.floor(3 * sp.tanh(u)) * nf.floor(3 * sp.tanh(v)), (u, v))  # all of its jumps are known
    assert bounded.holds(True) > 1e6


def test_single_precision() -> None:
    found = expectation(nf.floor(u) * nf.round_even(v), (u, v))
    for law in LAWS:
        single = found.value(tuple(np.float32(x) for x in law))
        assert single.dtype == jnp.float32
        assert abs(float(single) - float(found.value(tuple(np.float64(np.float32(x)) for x in law)))) < 2e-5 * max(
            1, law[0]
        )


@pytest.mark.parametrize(
    "expr",
    [
        pytest.param(sp.Abs(u - nf.round_even(u)) * sp.Abs(v - nf.round_even(v)), marks=pytest.mark.long),
        sp.atan2(u, v),
        nf.floor(u * v),
    ],
    ids=str,
)
def test_others_are_sampled_where_that_is_allowed(expr: sp.Expr) -> None:
    with pytest.raises(NoRule, match="quasi-Monte Carlo"):
        expectation(expr, (u, v))
    found = expectation(expr, (u, v), tolerance=1e-2)
    law = (1.0, 0.5, 1.0)
    draw = np.random.default_rng(1).multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 400_000).T
    values = np.asarray(nf.to_jax(expr, (u, v))(*map(jnp.asarray, draw)))
    assert abs(float(found.value(law)) - values.mean()) < 5 * values.std() / math.sqrt(values.size) + float(
        found.error(law)
    )
    with pytest.raises(NoRule, match="delta functions"):  # its derivative is not that of the samples
        jax.grad(lambda c: found.value((1.0, c, 1.0)))(0.5)


@pytest.mark.slow
def test_incomplete_functions() -> None:
    """E[f(u)] by quadrature, and derivatives against differences."""
    rows = {
        "gamma": (lambda z: nf.igamma(2, z**2), lambda z: np.asarray(jax.scipy.special.gammainc(2.0, z * z))),
        "beta": (lambda z: nf.betainc(2, 3, nf.logistic(z)), lambda z: np.asarray(jax.scipy.special.betainc(2.0, 3.0, jax.nn.sigmoid(z)))),
        "trigamma": (lambda z: sp.polygamma(1, 1 + z**2), lambda z: scipy.special.polygamma(1, 1 + np.asarray(z) ** 2)),
        "digamma": (lambda z: sp.polygamma(0, 1 + z**2), lambda z: scipy.special.digamma(1 + np.asarray(z) ** 2)),
        "Bessel": (nf.NAMED["bessel_i0e"], scipy.special.i0e),
    }  # fmt: skip
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    for name, (f, own) in rows.items():
        slope = nf.to_jax(sp.diff(f(u), u), (u,))(jnp.asarray(0.7))
        assert abs(float(slope) - float(own(0.7 + 1e-5) - own(0.7 - 1e-5)) / 2e-5) < 1e-7, name
        if name != "Bessel":  # which has a kink
            want = float(weights @ own(math.sqrt(0.5) * x)) / math.sqrt(2 * math.pi)
            assert abs(float(expectation(f(u), (u,), tolerance=1e-8).value((0.5,))) - want) < 1e-7, name
