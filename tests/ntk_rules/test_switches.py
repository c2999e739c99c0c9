"""Places where a function changes its sign: all of them, exact or to thirty digits, or a refusal that says why."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from ntk_rules.functions import elementary, expm1, log1p, logistic, softplus
from ntk_rules.intervals import bounds
from ntk_rules.pieces import cut
from ntk_rules.steps import canonical_kinks
from ntk_rules.switches import NotCuttable, sign_changes

z, b = sp.symbols("z b", real=True)

# Switches with the number of places where they change sign.
SWITCHES = {
    z**3 - z: 3,
    z**5 - z - 1: 1,
    sp.sqrt(2) * z**2 - 1: 2,
    (z - 1) ** 2: 0,
    (z - 1) ** 2 * (z + 1): 1,
    z * logistic(z) - 1: 1,
    z * logistic(z) - z: 1,
    z * logistic(z) + sp.Rational(1, 5): 2,
    sp.tanh(z) - z / 2: 3,
    z - sp.tanh(z): 1,
    sp.sin(z) - z: 1,
    softplus(z) - 2: 1,
    sp.exp(z) - 2 - z: 2,
    sp.exp(z) - 1 - z: 0,
    sp.tanh(z) ** 2 - sp.Rational(1, 4): 2,
    sp.cos(z) - z: 1,
    sp.log(sp.cosh(z)) - 1: 2,
    sp.exp(-(z**2) / 2) - sp.Rational(1, 2): 2,
    z * sp.tanh(softplus(z)) + sp.Rational(3, 10): 2,
    sp.sin(3 * z) - z / 3: 7,
    z * sp.exp(-z) - sp.Rational(1, 1000): 2,
    sp.tanh(z) - 1: 0,
    z * sp.tanh(z): 0,
    sp.atan(z) - sp.erf(z): 3,
}


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_all_sign_changes_are_found(switch):
    """Between the places the sign is what is said, seen at many points; at each place the switch is zero to 28 digits."""
    places, positive = sign_changes(switch, z)
    assert len(places) == SWITCHES[switch]
    f = sp.lambdify(z, elementary(switch), "mpmath")
    edges = [-30.0, *map(float, places), 30.0]
    assert edges == sorted(edges)
    with mp.workdps(50):
        for k, (low, high) in enumerate(itertools.pairwise(edges)):
            for t in np.linspace(0.01, 0.99, 41):
                value = f(mp.mpf(low) + mp.mpf(t) * (mp.mpf(high) - mp.mpf(low)))
                assert value == 0 or (value > 0) == (positive == (k % 2 == 0)) or abs(value) < mp.mpf(10) ** -12
        for place in places:
            assert abs(f(mp.mpf(str(sp.N(place, 32))))) < mp.mpf(10) ** -26


def test_places_move_with_parameters_that_shift():
    (place,), positive = sign_changes((z + b) * logistic(z + b) - 1, z)
    assert place.has(b) and not positive
    assert abs(float(place.subs(b, 0)) - 1.2784645427610738) < 1e-15
    (place,), positive = sign_changes(softplus(1 - 2 * z + b) - 3, z)
    assert positive and abs(float(place.subs(b, 1)) - (1 - math.log(math.expm1(3)) / 2)) < 1e-15


@pytest.mark.parametrize(
    "switch, said",
    [
        (sp.sin(z), "too many"),
        (logistic(z) - b, "moves with .'b'."),
        (b * z - 1, "the sign of b is not known"),
        ((sp.cos(z) - 1) ** 2 - 0 * z + 1 - sp.cos(z - 1), "too many|in doubt"),
    ],
)
def test_what_is_in_doubt_is_refused(switch, said):
    with pytest.raises(NotCuttable, match=said):
        sign_changes(switch, z)


def test_bounds_hold_what_they_enclose():
    exprs = [
        z * logistic(z), sp.tanh(z) ** 3 - z, sp.exp(-(z**2)) * sp.sin(3 * z), softplus(z) / (1 + z**2), sp.cosh(z) - 2,
        sp.sqrt(1 + z**2), log1p(z**2) * expm1(z), sp.erf(z) - sp.atan(z), sp.cos(2 * z) + sp.sinh(z), 2**z, sp.erfc(z),
        (3 + sp.sin(z)) ** sp.Rational(-3, 2), sp.asinh(z) * z ** (-2),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    for expr in exprs:
        f = sp.lambdify(z, elementary(expr), "mpmath")
        for low, width in zip(rng.normal(0, 3, 20), rng.lognormal(-2, 2, 20), strict=True):
            least, most = bounds(expr, z, (low, low + width))
            for t in np.linspace(0, 1, 9):
                x = min(max(low + t * width, low), low + width)
                with mp.workdps(50):
                    assert x == 0 or least <= f(mp.mpf(x)) <= most, (expr, low, width)


def test_pieces_between_places_that_only_numbers_know():
    pieces = cut(sp.Min(z * logistic(z), 1), z)
    assert [p.expr for p in pieces] == [z * logistic(z), 1]
    assert len(cut(sp.Abs(z**3 - z), z)) == 4
    assert [p.expr for p in cut(sp.Max(z, -z, 1), z)] == [-z, 1, z]
    assert cut(sp.Piecewise((1, z**2 > 2), (0, True)), z)[1].low == -sp.sqrt(2)


def test_steps_of_two_gaussians_occur_once():
    """3 H^2 delta would be 3/4 delta: the derivative of a cube of a step is its delta function."""
    u, v = sp.symbols("u v", real=True)
    F = canonical_kinks(sp.Heaviside(u + v, sp.Rational(1, 2)) ** 3 * sp.tanh(u), (u, v))
    assert sp.tanh(u) * sp.Heaviside(u + v, sp.Rational(1, 2)) == F
    G = canonical_kinks(sp.tanh(u * sp.Heaviside(-2 * u - 2 * v)), (u, v))
    assert sp.simplify(G.subs({u: 1, v: -2}) - sp.tanh(1)) == 0 and G.subs({u: 1, v: 2}) == 0
