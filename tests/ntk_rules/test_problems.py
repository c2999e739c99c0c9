"""Hard cases for the numerical tiers: whatever their size, errors stay within the stated ones.

Exact values by mpmath with 50 digits: E[f(u)] and, at correlation 1 and -1 (where series converge slowest) and 0, E[f(u) g(v)]
are integrals over one Gaussian, cut where the integrand changes fast.
"""

from __future__ import annotations

import jax.numpy as jnp
import mpmath as mp
import pytest
import sympy as sp

from ntk_rules import NoRule, expectation
from ntk_rules.functions import logistic, softplus

from . import references

pytestmark = pytest.mark.slow

u, v = sp.symbols("u v", real=True)

# (f, g): steep, with poles near the axis, oscillating, growing, with kinks, and of both signs.
PAIRS = {
    "tanh": (sp.tanh, sp.tanh),
    "steep tanh": (lambda z: sp.tanh(20 * z), lambda z: sp.tanh(20 * z)),
    "shifted steep sigmoid": (lambda z: logistic(15 * (z - 1)), lambda z: logistic(15 * (z - 1))),
    "arctan": (sp.atan, sp.atan),
    "Lorentzian": (lambda z: 1 / (1 + 9 * z**2), lambda z: 1 / (1 + 9 * z**2)),
    "root": (lambda z: sp.sqrt(1 + z**2), lambda z: sp.sqrt(1 + z**2)),
    "softplus": (softplus, softplus),
    "swish": (lambda z: z * logistic(z), lambda z: z * logistic(z)),
    "damped wave": (lambda z: sp.sin(9 * z) * sp.tanh(z), lambda z: sp.sin(9 * z) * sp.tanh(z)),
    "log cosh": (
        lambda z: 1 + sp.log(sp.cosh(z)),
        lambda z: 1 + sp.log(sp.cosh(z)),
    ),  # 1 +: near 0 the log is all rounding
    "tanh and soft sign": (sp.tanh, lambda z: z / (1 + sp.Abs(z))),
    "soft sign": (lambda z: z / (1 + sp.Abs(z)), lambda z: z / (1 + sp.Abs(z))),
    "relu of tanh": (lambda z: sp.Max(sp.tanh(z), 0), lambda z: sp.Max(sp.tanh(z), 0)),
    "clipped ramp": (lambda z: sp.Min(sp.Max(z, 0), 1) / (1 + z**2), lambda z: sp.Min(sp.Max(z, 0), 1) / (1 + z**2)),
}
STEEP = ("steep tanh", "shifted steep sigmoid", "Lorentzian")  # refused at the default tolerance
VARIANCES = (1e-6, 0.04, 1.0, 9.0, 64.0, 900.0)
LOOSE = 0.01  # a tolerance at which all of them are answered, so that large errors are seen to be stated


@pytest.mark.parametrize("name", PAIRS)
def test_errors_of_pairs_are_not_understated(name: str) -> None:
    f, g = PAIRS[name]
    E = expectation(f(u) * g(v), (u, v), tolerance=LOOSE)
    for q in VARIANCES:
        sizes = [mp.sqrt(references.mean(h(u) ** 2, q)) for h in (f, g)]
        scale = float(sizes[0] * sizes[1])
        for rho in (1.0, 0.0, -1.0):
            exact = (
                references.mean(f(u), q) * references.mean(g(u), q)
                if rho == 0
                else references.mean(f(u) * g(int(rho) * u), q)
            )
            known = {(0, 0): q, (0, 1): rho * q, (1, 1): q}
            law = [jnp.asarray(known[e]) for e in E.needs]
            off, stated = abs(float(E.value(law)) - float(exact)), float(E.error(law))
            assert off <= stated, (q, rho, off, stated, scale)
            if q <= 1 and name not in STEEP:
                assert off <= 1e-12 * scale, (q, rho, off, scale)


@pytest.mark.parametrize("name", PAIRS)
def test_errors_of_means_are_not_understated(name: str) -> None:
    f, _ = PAIRS[name]
    E = expectation(f(u) ** 2 + f(u), (u,), tolerance=LOOSE)
    for q in VARIANCES:
        exact, scale = references.mean(f(u) ** 2 + f(u), q), float(mp.sqrt(references.mean((f(u) ** 2 + f(u)) ** 2, q)))
        law = [jnp.asarray(q) for _ in E.needs]
        off, stated = abs(float(E.value(law)) - float(exact)), float(E.error(law))
        assert off <= stated, (q, off, stated, scale)


@pytest.mark.parametrize("name", STEEP)
def test_what_cannot_be_had_to_the_tolerance_is_refused(name: str) -> None:
    f, g = PAIRS[name]
    with pytest.raises(NoRule, match=r"Hermite series: reaches .* wanted 1\.0e-12"):
        expectation(f(u) * g(v), (u, v))


@pytest.mark.parametrize("name", ["soft sign", "relu of tanh"])
def test_wedges_in_single_precision(name: str) -> None:
    """Kinks at zero alone: polar coordinates up to moderate variances, panels beyond; both within what they state, and 1e-6."""
    f, g = PAIRS[name]
    E = expectation(f(u) * g(v), (u, v))
    assert "wedges of the plane" in E.steps[0]
    for q in (2.0**-20, 2.0**-5, 1.0, 4.0, 64.0):
        scale = float(references.mean(f(u) ** 2, q))
        for rho in (1, -1):
            law = [jnp.asarray({(0, 0): q, (0, 1): rho * q, (1, 1): q}[e], jnp.float32) for e in E.needs]
            off = abs(float(E.value(law)) - float(references.mean(f(u) * g(rho * u), q)))
            assert off <= min(float(E.error(law)), 1e-6 * scale), (q, rho, off, scale)
