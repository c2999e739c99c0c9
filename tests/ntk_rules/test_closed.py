"""Closed forms: that they are found, their values and their derivatives, against quadrature in the plane."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy import special as scs

from ntk_rules import expectation, functions
from tests.everyday import everyday

from . import references

u, v = sp.symbols("u v")


def relu(z):
    return sp.Max(z, 0)


ACTIVATIONS = {
    "relu": relu,
    "leaky relu": lambda z: sp.Piecewise((z, z >= 0), (0.01 * z, True)),
    "abs": sp.Abs,
    "step": lambda z: sp.Heaviside(z, sp.Rational(1, 2)),
    "sign": sp.sign,
    "squared relu": lambda z: relu(z) ** 2,
    "rectified cube": lambda z: z**3 * sp.Heaviside(z),
    "shifted relu": lambda z: relu(z - 1),
    "erf": sp.erf,
    "sigmoid-like": lambda z: (sp.erf(z / 2.4020563531719796) + 1) / 2,
    "shifted erf": lambda z: sp.erf(2 * z + 1),
    "gelu": lambda z: z * (1 + sp.erf(z * 0.7071067811865476)) / 2,
    "sin": sp.sin,
    "shifted cos": lambda z: sp.cos(1.5 * z - 0.25),
    "exp": lambda z: sp.exp(0.5 * z),
    "gaussian": lambda z: sp.exp(-(z**2)),
    "rbf feature": lambda z: sp.sqrt(2) * sp.sin(sp.sqrt(2) * z + sp.pi / 4),
    "gabor": lambda z: sp.exp(-(z**2)) * sp.sin(z),
    "polynomial": lambda z: 1 + z - 2 * z**2 + z**3 / 3,
    "hermite": lambda z: (z**3 - 3 * z) / sp.sqrt(6),
    "elu": lambda z: sp.Piecewise((z, z > 0), (sp.exp(z) - 1, True)),
    "selu": lambda z: 1.0507009873554805 * sp.Piecewise((z, z > 0), (1.6732632423543772 * functions.expm1(z), True)),
    "celu": lambda z: relu(z) + sp.Min(0, 2 * functions.expm1(z / 2)),
    "hard tanh": lambda z: sp.Max(-1, sp.Min(z, 1)),
    "relu6": lambda z: sp.Min(relu(z), 6),
    "hard sigmoid": lambda z: sp.Min(relu(z + 3), 6) / 6,
    "hard swish": lambda z: z * sp.Min(relu(z + 3), 6) / 6,
}
# Dear, and like others: pieces as of hard swish, shifts as of the cosine.
SLOW = ("celu", "elu", "hard sigmoid", "hard tanh", "relu6", "selu", "shifted erf", "shifted relu")
# q1, q2, c: plain, nearly equal inputs, nearly opposite ones.
LAWS = [(1.3, 0.8, 0.4), (1.1, 1.0, 0.99), (0.9, 1.2, -1.0)]


def numpy_of(f):
    modules = [
        {"expm1": np.expm1, "erf": scs.erf, "Heaviside": lambda x, h=0.5: np.heaviside(x, 0.5)},
        "numpy",
    ]
    return sp.lambdify(u, f(u), modules)


def values(E, q1, q2, c):
    known = {(0, 0): q1, (0, 1): c, (1, 1): q2}
    return [jnp.asarray(known[e]) for e in E.needs]


@pytest.mark.parametrize("name", everyday(ACTIVATIONS, SLOW, ["hard swish"]))
def test_value(name):
    f = ACTIVATIONS[name]
    E = expectation(f(u) * f(v), (u, v))
    assert E.tier == "closed form" and E.bound == 0.0
    found = np.broadcast_to(E.value(values(E, *np.array(LAWS).T)), 3)
    for law, got in zip(LAWS, found, strict=True):
        want = references.plane(numpy_of(f), numpy_of(f), *law)
        scale = np.sqrt(references.line(lambda x: numpy_of(f)(x) ** 2, law[0]))
        # The reference itself: 48-node panels against a ridge of width 0.1 in the nearly singular laws.
        assert abs(got - want) < 1e-10 * max(1.0, scale**2), (law, got, want)


PAIRS = [
    ("relu", "erf"), ("relu", "polynomial"), ("elu", "relu"), ("step", "gaussian"), ("sin", "relu"), ("shifted cos", "hard tanh"),
    ("gabor", "shifted erf"), ("rbf feature", "gelu"),
]  # fmt: skip


@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=pytest.mark.long if p == ("elu", "relu") else (), id="-".join(p)) for p in PAIRS]
)
def test_mixed_pairs(pair):
    f, g = (ACTIVATIONS[name] for name in pair)
    E = expectation(f(u) * g(v), (u, v))
    assert E.tier == "closed form"
    law = LAWS[0]
    assert abs(float(E.value(values(E, *law))) - references.plane(numpy_of(f), numpy_of(g), *law)) < 1e-11


@pytest.mark.parametrize(
    "name",
    [
        "relu",
        pytest.param("gelu", marks=pytest.mark.long),
        "abs",
        "squared relu",
        "gabor",
        pytest.param("hard tanh", marks=pytest.mark.slow),
        "leaky relu",
    ],
)
def test_derivatives_by_price(name):
    """d/dC by Price's theorem against finite differences of the value, first and second order."""
    f = ACTIVATIONS[name]
    E = expectation(f(u) * f(v), (u, v))
    start = values(E, *LAWS[0])
    step = 1e-5
    gradient = jax.grad(E.value)(start)
    for k in range(len(start)):
        moved = [[a + s * step * (i == k) for i, a in enumerate(start)] for s in (1, -1)]
        slope = (E.value(moved[0]) - E.value(moved[1])) / (2 * step)
        assert abs(gradient[k] - slope) < 1e-8  # of the finite difference
    if name in ("relu", "gelu"):
        second = jax.hessian(E.value)(start)
        for k in range(len(start)):
            moved = [[a + s * step * (i == k) for i, a in enumerate(start)] for s in (1, -1)]
            high, low = (jax.grad(E.value)(m) for m in moved)
            for j in range(len(start)):
                assert abs(second[j][k] - (high[j] - low[j]) / (2 * step)) < 1e-7  # of the finite difference


@pytest.mark.long
def test_parameters_means_and_their_derivatives():
    a, m = sp.symbols("a m")
    E = expectation(relu(a * u) * sp.erf(v), (u, v), (a, m), means=(m, 2 * m))

    def value(p):
        return E.value(values(E, *LAWS[0]), p)

    point = (jnp.asarray(0.7), jnp.asarray(0.3))
    shifted = references.plane(lambda x: np.maximum(0.7 * (x + 0.3), 0), lambda y: scs.erf(y + 0.6), *LAWS[0])
    # The kink of the shifted relu is no edge of the reference's panels: their error is about 1e-4 there.
    assert abs(float(value(point)) - shifted) < 1e-3
    gradient = jax.grad(value)(point)
    step = 1e-5
    for k in range(2):
        moved = [tuple(p + s * step * (i == k) for i, p in enumerate(point)) for s in (1, -1)]
        assert abs(gradient[k] - (value(moved[0]) - value(moved[1])) / (2 * step)) < 1e-8  # finite difference


def test_more_than_two_gaussians():
    w, t = sp.symbols("w t")
    rng = np.random.default_rng(3)
    A = rng.normal(size=(4, 4))
    C = A @ A.T / 4
    Z = rng.standard_normal((1_000_000, 4)) @ np.linalg.cholesky(C).T
    cases = {
        u * v * w * t: Z.prod(axis=1),
        sp.Max(u, v) * sp.Max(w, t): np.maximum(Z[:, 0], Z[:, 1]) * np.maximum(Z[:, 2], Z[:, 3]),
        relu(u) * relu(v) * relu(w): np.maximum(Z[:, :3], 0).prod(axis=1),
    }
    for F, sample in cases.items():
        E = expectation(F, (u, v, w, t))
        assert E.tier == "closed form"
        got = float(E.value([C[e] for e in E.needs]))
        assert abs(got - sample.mean()) < 5 * sample.std() / 1000  # five standard errors of a million draws


def test_needs_are_what_the_value_reads():
    assert expectation(u * v, (u, v)).needs == ((0, 1),)
    assert expectation(relu(u) ** 2, (u, v)).needs == ((0, 0),)
    assert expectation(relu(u) * v, (u, v)).needs == ((0, 1),)
    assert expectation(relu(u) * relu(v), (u, v), independent=[(0, 1)]).needs == ((0, 0), (1, 1))


def test_formula_reads_well():
    E = expectation(sp.erf(u) * sp.erf(v), (u, v))
    C00, C11 = sp.symbols("C_00 C_11", positive=True)
    C01 = sp.Symbol("C_01", real=True)
    plain = E.formula.replace(lambda e: e.func.__name__ == "Arcsine", lambda e: sp.asin(e.args[0]))
    want = 2 * sp.asin(2 * C01 / sp.sqrt((1 + 2 * C00) * (1 + 2 * C11))) / sp.pi  # Williams 1997, eq 11
    point = {C00: 1.3, C01: 0.4, C11: 0.8}
    assert abs(complex(plain.subs(point).evalf()) - complex(want.subs(point).evalf())) < 1e-14
    assert r"\arcsin" in E.latex()


def test_peer_closed_forms_are_closed():
    """What neural-tangents has by hand, derived."""
    for name in ("relu", "leaky relu", "abs", "erf", "sigmoid-like", "sin", "shifted cos", "rbf feature",
                 "gelu",
                 "gabor", "gaussian", "exp", "sign", "polynomial", "rectified cube", "hermite"):  # fmt: skip
        f = ACTIVATIONS[name]
        assert expectation(f(u) * f(v), (u, v)).tier == "closed form"


def test_maxima_that_coincide():
    """max(u, v) max(s, t) in the coordinates of the kinks: exact where its factors are one, or their arguments are."""
    a, b, c, d = sp.symbols("a b c d", real=True)
    E = expectation(sp.Max(a, b) * sp.Max(c, d), (a, b, c, d))
    value = lambda law: float(E.value([law[e] for e in E.needs]))
    same = np.kron(np.ones((2, 2)), np.array([[1.0, 0.3], [0.3, 2.0]]))
    assert abs(value(same) - 1.5) < 1e-14  # E[max^2] = (q_1 + q_2)/2, whatever the correlation
    assert abs(value(np.ones((4, 4))) - 1) < 1e-14
    pairs = np.kron(np.array([[1.0, 0.5], [0.5, 1.0]]), np.ones((2, 2)))
    assert abs(value(pairs) - 0.5) < 1e-14
    slopes = jax.grad(lambda law: E.value(law))([jnp.asarray(pairs[e]) for e in E.needs])
    assert np.isfinite(np.asarray(slopes)).all()
