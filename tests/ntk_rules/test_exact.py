"""What is to be exact is: closed forms of every kind of function at affine arguments a z + b and biased means, a, b, m symbols.

Beside quadrature between the kinks in the plane, and at correlation 1 and -1, where it is a line, beside mpmath with 50 digits.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation, explain, functions
from tests.everyday import everyday

from . import references
from .test_closed import ACTIVATIONS, relu

u, v = sp.symbols("u v", real=True)
A, B, M, SLOPE, PLACE = sp.Symbol("a", positive=True), *sp.symbols("b m slope place", real=True)
PARAMETERS = (A, B, M, SLOPE, PLACE)
POINT = (0.75, 0.3, -0.4, 0.25, 0.6)

MORE: dict[str, Callable[[sp.Expr], sp.Expr]] = {
    "parametric relu": lambda z: sp.Max(z, 0) + SLOPE * sp.Min(z, 0),
    "threshold with an offset": lambda z: sp.Piecewise((z, z > PLACE), (0, True)),
    "fifth rectified power": lambda z: relu(z) ** 5,
    "fourth Hermite": lambda z: (z**4 - 6 * z**2 + 3) / sp.sqrt(24),
    "cos": sp.cos,
    "sum": lambda z: sp.Abs(z) / 2 - sp.erf(z) + z**2,
    "product": lambda z: z * sp.sin(z) * sp.exp(z / 2),
}
OPEN: dict[str, Callable[[sp.Expr], sp.Expr]] = {"relu times erf": lambda z: relu(z) * sp.erf(z)}
ALL = {**ACTIVATIONS, **MORE}
KINKS = {
    "hard tanh": (-1, 1), "relu6": (0, 6), "hard sigmoid": (-3, 3), "hard swish": (-3, 3), "shifted relu": (1,),
    "threshold with an offset": (POINT[4],),
}  # fmt: skip
# Not smooth across: everything else has its kinks, if any, at zero.
LAWS = [(1.3, 0.8, 0.4), (0.5, 2.0, -0.8)]
EVERYDAY, LONG = {"threshold with an offset"}, {"gelu", "parametric relu"}


def affine(name: str, z: sp.Expr) -> sp.Expr:
    return (ALL | OPEN)[name](A * z + B)


def numbers(F: sp.Expr) -> sp.Expr:
    return F.xreplace({s: sp.Rational(str(x)) for s, x in zip(PARAMETERS, POINT, strict=True)})


def moved(name: str) -> list[float]:
    """The kinks in z, whose mean is zero: the argument is a (z + m) + b."""
    a, b, m, *_ = POINT
    return [(k - b) / a - m for k in KINKS.get(name, (0,))]


def on(E, law: tuple[float, float, float]) -> float:
    known = {(0, 0): law[0], (0, 1): law[2], (1, 1): law[1]}
    return float(E.value([jnp.asarray(known[e]) for e in E.needs], POINT))


def check(name: str, other: str, tier: str = "closed form") -> None:
    E = expectation(affine(name, u) * affine(other, v), (u, v), PARAMETERS, means=(M, M))
    assert E.tier == tier and (E.bound == 0.0) == (tier == "closed form")
    f, g = (numbers(affine(n, u + M)) for n in (name, other))
    left, right = (jax.jit(functions.to_jax(h, (u,))) for h in (f, g))
    kinks = (moved(name), moved(other))
    size = [
        np.sqrt(references.split_plane(h, h, (q, q, 0.9 * q), (k, k)) + 1)
        for h, q, k in ((left, 1.3, kinks[0]), (right, 2.0, kinks[1]))
    ]
    for law in LAWS:
        want = references.split_plane(left, right, law, kinks)
        assert abs(on(E, law) - want) < 1e-12 * size[0] * size[1], (law, on(E, law), want)
    for ratio in (1, -1):
        places = [*kinks[0], *(ratio * k for k in kinks[1])]
        want = float(references.mean(f * g.subs(u, ratio * u), 0.9, places))
        assert abs(on(E, (0.9, 0.9, ratio * 0.9)) - want) < 1e-12 * size[0] * size[1], (ratio, want)


@pytest.mark.parametrize("name", everyday(ALL, ALL.keys() - EVERYDAY - LONG, LONG))
def test_affine_arguments_and_means(name: str) -> None:
    check(name, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [("relu", "erf"), ("relu", "polynomial"), ("elu", "gelu"), ("hard tanh", "gabor"), ("step", "exp"), ("sin", "threshold with an offset")],
)  # fmt: skip
def test_mixed_pairs_with_affine_arguments_and_means(pair: tuple[str, str]) -> None:
    check(*pair)


@pytest.mark.slow
def test_four_steps_have_no_closed_form() -> None:
    """relu times erf of both: a probability in an orthant of four dimensions, of which none is known; the quadrature is as good."""
    check("relu times erf", "relu times erf", "quadrature split at the kinks")


def test_slopes_of_either_sign() -> None:
    """A slope that is a parameter without a sign: the step H(a z + b) turns around with it."""
    a = sp.Symbol("a", real=True)
    E = expectation(relu(a * u + B) * relu(a * v + B), (u, v), (a, B))
    assert E.tier == "closed form"
    for slope in (0.75, -0.75):
        f = lambda x, slope=slope: np.maximum(slope * x + 0.3, 0)
        kink = [-0.3 / slope]
        got = float(
            E.value([dict(zip(((0, 0), (1, 1), (0, 1)), LAWS[0], strict=True))[e] for e in E.needs], (slope, 0.3))
        )
        assert abs(got - references.split_plane(f, f, LAWS[0], (kink, kink))) < 1e-13


def test_two_gaussian_factors_are_one_density() -> None:
    """E[exp(-z'D z/2)] = 1/sqrt(det(1 + D C))."""
    E = expectation(sp.exp(-(u**2)) * sp.exp(-((u + v) ** 2) / 4), (u, v))
    assert E.tier == "closed form"
    assert "the density at 0" in " ".join(E.steps)
    for a, b, c in LAWS:
        law = np.array([[a, c], [c, b]])
        factors = np.array([[2 + 0.5, 0.5], [0.5, 0.5]])
        exact = 1 / np.sqrt(np.linalg.det(np.eye(2) + factors @ law))
        got = E.value([dict(zip(((0, 0), (1, 1), (0, 1)), (a, b, c), strict=True))[e] for e in E.needs], ())
        assert abs(float(got) - exact) < 1e-15


def test_the_derivation_names_its_rules() -> None:
    said = explain(relu(u) * sp.erf(v) + sp.exp(u) * sp.sin(v) * relu(v))
    for rule in ("Stein", "delta function", "Girsanov", "Gaussian factor"):
        assert rule in said
