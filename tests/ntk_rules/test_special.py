"""The special functions against mpmath, in both precisions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy

from ntk_rules import faddeeva, heads, special
from ntk_rules.functions import logistic

from . import references

X, Y = sympy.symbols("x y")
DTYPES = [np.float64, np.float32]
EPS = {np.float64: 1e-15, np.float32: 3e-7}  # a few units in the last place of numbers of order one


@pytest.mark.parametrize("dtype", DTYPES)
def test_acos_and_asin(dtype):
    x = np.concatenate([np.linspace(-1, 1, 401), 1 - np.logspace(-12, -1, 40), np.logspace(-12, -1, 40)]).astype(dtype)
    for ours, exact in ((special.acos, mp.acos), (special.asin, mp.asin)):
        want = np.array([float(exact(mp.mpf(float(t)))) for t in x])
        assert np.max(np.abs(np.asarray(ours(x), float) - want)) < 4 * EPS[dtype]


def test_orthants():
    """Against the bivariate integral, and in three dimensions against a closed case and inclusion and exclusion."""
    r = jnp.asarray([-1.0, -0.7, 0.0, 0.3, 1 - 1e-12, 1.0])
    want = special.bivariate_cdf(0.0, 0.0, r, jnp.sqrt((1 - r) * (1 + r)))
    np.testing.assert_allclose(special.orthant(r), want, atol=2e-7)  # asin knows the angle at 1 to half the digits
    np.testing.assert_allclose(special.orthant(r, r, 1.0), special.orthant(r), atol=1e-15)  # y = z
    np.testing.assert_allclose(special.orthant(r, 0.0, 0.0), special.orthant(r) / 2, atol=1e-15)
    assert abs(float(jax.grad(special.orthant)(0.6)) - 1 / (2 * np.pi * 0.8)) < 1e-15
    assert np.isfinite(jax.grad(special.orthant)(1.0))
    with pytest.raises(ValueError, match="2 correlations given"):
        special.orthant(0.1, 0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_angle_keeps_relative_accuracy_for_small_angles(dtype):
    t = np.logspace(-6, 0, 30)
    got = np.asarray(special.angle(np.cos(t).astype(dtype), np.sin(t).astype(dtype)), float)
    np.testing.assert_allclose(got, t, rtol=8 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_faddeeva_and_the_normal_integral_at_complex_arguments(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 3, 100), rng.normal(0, 30, 40), [0.0, 1.0, 0.0, -2.0]]).astype(dtype)
    y = np.concatenate([np.abs(rng.normal(0, 3, 100)), np.abs(rng.normal(0, 1, 40)), [0.0, 0.0, 5.0, 0.0]]).astype(
        dtype
    )
    with mp.workdps(40):
        z = [mp.mpc(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        exact = np.array([complex(mp.exp(-(t * t)) * mp.erfc(-1j * t)) for t in z])
        real, imaginary = (np.asarray(part, float) for part in faddeeva.faddeeva(x, y))
        assert np.max(np.abs(real + 1j * imaginary - exact)) < 4 * EPS[dtype]
        for k, phase, mean, shift in [(-2.0, 0.3, 0.7, 1.5), (-40.0, -1.0, -2.0, 8.5), (1.0, 2.0, -0.4, 0.0)]:
            numbers = [dtype(t) for t in (k, phase, mean, shift, 1.25)]
            k, phase, mean, shift, std = (mp.mpf(float(t)) for t in numbers)
            want = mp.re(mp.exp(k + 1j * phase) * mp.erfc(-(mean + 1j * shift) / std / mp.sqrt(2)) / 2)
            rest = float(k + (shift**2 - mean**2) / (2 * std**2))
            got = float(faddeeva.wave_cdf(*numbers, dtype(rest)))
            assert abs(got - float(want)) < 40 * EPS[dtype] * float(
                mp.exp(max(k, rest))
            )  # cos and exp of rounded numbers
    assert float(faddeeva.wave_cdf(0.0, 0.0, 1.0, 0.0, 0.0, 0.0)) == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_erfcx(dtype):
    x = np.concatenate([np.linspace(0, 30, 200), np.logspace(2, 8, 20)]).astype(dtype)
    with mp.workdps(40):
        want = [
            float(mp.erfc(mp.mpf(float(t))) * mp.exp(mp.mpf(float(t)) ** 2))
            if t < 100
            else float((1 - 1 / (2 * mp.mpf(float(t)) ** 2)) / (mp.sqrt(mp.pi) * mp.mpf(float(t))))
            for t in x
        ]
    # Beyond 100 the two-term expansion is right to 1e-8 relative, so the far points get that tolerance.
    near = x < 100
    got = np.asarray(special.erfcx(x), float)
    np.testing.assert_allclose(got[near], np.array(want)[near], rtol=8 * EPS[dtype])
    np.testing.assert_allclose(got[~near], np.array(want)[~near], rtol=3e-7)


def _cases():
    rng = np.random.default_rng(0)
    for h, k in [
        (0, 0),
        (0.0, 1.3),
        (-2.0, 0.0),
        (1e-5, -1e-5),
        (0.7, 0.7),
        (0.7, -0.7),
        (-3.0, 2.5),
        (5.0, -1.0),
    ]:
        for r in (0.0, 0.5, -0.5, 0.999, -0.999, 1 - 1e-9, -1 + 1e-9):
            yield h, k, r
    for _ in range(20):
        yield (*rng.normal(size=2) * 1.5, rng.uniform(-1, 1))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bivariate_cdf(dtype, every):
    h, k, r = (np.array(t).astype(dtype)[::every] for t in zip(*_cases(), strict=True))
    inside = np.abs(r) < 1
    h, k, r = h[inside], k[inside], r[inside]
    w = np.array([float(mp.sqrt((1 - mp.mpf(float(t))) * (1 + mp.mpf(float(t))))) for t in r]).astype(dtype)
    want = [float(references.bivariate_normal(*map(float, case))) for case in zip(h, k, r, strict=True)]
    worst = np.max(np.abs(np.asarray(special.bivariate_cdf(h, k, r, w), float) - want))
    assert worst < (1e-14 if dtype is np.float64 else 5e-7)


def test_bivariate_cdf_at_the_boundary():
    """Correlation +-1 and infinite limits."""
    h = jnp.array([0.3, -0.2, jnp.inf, 0.5])
    k = jnp.array([0.1, 0.4, 0.7, -jnp.inf])
    phi = jax.scipy.special.ndtr
    np.testing.assert_allclose(special.bivariate_cdf(h, k, 1.0, 0.0), phi(jnp.minimum(h, k)), atol=1e-15)
    np.testing.assert_allclose(special.bivariate_cdf(h, k, -1.0, 0.0), jnp.maximum(phi(h) - phi(-k), 0), atol=1e-15)


def test_bivariate_cdf_derivatives():
    def value(h, k, r):
        return special.bivariate_cdf(h, k, r, jnp.sqrt((1 - r) * (1 + r)))

    point = (0.3, -0.8, 0.6)
    step = 1e-5
    for n in range(3):
        moved = [list(point), list(point)]
        moved[0][n] += step
        moved[1][n] -= step
        slope = (value(*moved[0]) - value(*moved[1])) / (2 * step)
        assert abs(jax.grad(value, n)(*point) - slope) < 1e-9  # of the finite difference


def test_correlation_is_one_for_equal_entries_and_guards_zero():
    q = jnp.asarray(np.random.default_rng(0).lognormal(sigma=8, size=1000), jnp.float32)
    rho, w = special.correlation(q, q, q)
    assert bool(jnp.all(rho == 1)) and bool(jnp.all(w == 0))
    rho, w = special.correlation(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]))
    assert rho.tolist() == [0.0, 0.0] and w.tolist() == [1.0, 1.0]
    rho, _ = special.correlation(1.0, 1.0, 1.0 + 1e-12)
    assert float(rho) == 1.0


def test_the_exponent_of_a_pair_keeps_its_digits() -> None:
    """-(x^2 + y^2 - 2 r x y)/(2 w^2) from correlation -1 + 2^-50 to 1 - 2^-50, x = +-y among the points, against 50 digits."""
    for r in (-1 + 2.0**-50, -0.6, 0.0, 0.3, 1 - 2.0**-50):
        with mp.workdps(50):
            square = 1 - mp.mpf(r) ** 2
            w = float(mp.sqrt(square))
            for x, y in ((3.0, 3.0), (3.0, -3.0), (-0.5, 2.0), (0.0, 1.0)):
                want = -(mp.mpf(x) ** 2 + mp.mpf(y) ** 2 - 2 * mp.mpf(r) * x * y) / (2 * square)
                got = float(special.pair_exponent(x, y, r, w))
                assert abs(got - want) <= 1e-14 * (1 + abs(want)), (x, y, r)
    assert float(special.pair_exponent(1.0, 2.0, 1.0, 0.0)) == 0.0


@pytest.mark.parametrize(
    "head",
    [
        logistic(X), heads.NormalCdf(X, Y), heads.ScaledCdf(X, Y, Y, X), heads.Arcsine(X, Y), heads.Residue(X, Y),
        heads.BivariateCdf(X, Y, X, Y, X, Y, X, Y), heads.WaveCdf(X, Y, X, Y, X, Y),
    ],
)  # fmt: skip
def test_latex_of_powers(head: sympy.Expr) -> None:
    """SymPy asks a function to print its own exponent."""
    assert sympy.latex(head) in sympy.latex(head**2) and sympy.latex(head**2).endswith("^{2}")


def test_differences_of_exponentials_keep_their_digits() -> None:
    """1 - exp(-a) - exp(-b) + exp(c - a - b) for small and large a, b, whichever pair is the one that nearly cancels."""
    for a, b, c in ((1e-9, 50.0, 0.0), (50.0, 1e-9, 0.0), (1e-9, 2e-9, 1e-10), (0.0, 0.0, 1e-20), (1e5, 2e5, 1.0)):
        got = float(special.exp_differences(0.0, -a, c - a - b, -b, a, c - a, b, c - b))
        with mp.workdps(50):
            want = 1 - mp.exp(-mp.mpf(a)) - mp.exp(-mp.mpf(b)) + mp.exp(mp.mpf(c) - a - b)
        assert abs(got - want) <= 1e-15 * max(abs(want), min(a, b)), (a, b, c)
