"""Every closed form that neural-tangents 0.6.5 has by hand: derived here, and right to 1e-12 beside independent quadrature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation, functions

from . import references

pytestmark = pytest.mark.slow

u, v = sp.symbols("u v", real=True)


def _hermite(n: int, z: sp.Expr) -> sp.Expr:
    """The probabilists' polynomial over sqrt(n!)."""
    previous, current = sp.S.One, z
    if n == 0:
        return previous
    for k in range(1, n):
        previous, current = current, z * current - k * previous
    return sp.expand(current) / sp.sqrt(sp.factorial(n))


# The names of its layers in `stax`, with their default or some arguments.
PEER = {
    "Relu": lambda z: sp.Max(z, 0),
    "LeakyRelu": lambda z: sp.Max(z, 0) + sp.Rational(1, 10) * sp.Min(z, 0),
    "Abs": sp.Abs,
    "ABRelu": lambda z: -sp.Min(z, 0) / 2 + 2 * sp.Max(z, 0),
    "Erf": lambda z: sp.Rational(3, 2) * sp.erf(z / 2) - sp.Rational(1, 4),
    "Sigmoid_like": lambda z: (sp.erf(z / sp.Float(2.4020563531719796)) + 1) / 2,
    "Sin": lambda z: 2 * sp.sin(sp.Rational(3, 2) * z + sp.Rational(1, 3)),
    "Cos": lambda z: sp.cos(z - sp.Rational(1, 5)),
    "Rbf": lambda z: sp.sqrt(2) * sp.sin(sp.sqrt(2) * z + sp.pi / 4),
    "Gelu": lambda z: z * (1 + sp.erf(z / sp.sqrt(2))) / 2,
    "Gabor": lambda z: sp.exp(-(z**2)) * sp.sin(z),
    "Gaussian": lambda z: sp.exp(-2 * (z - sp.Rational(1, 2)) ** 2),
    "Exp": lambda z: sp.exp(z / 2),
    "ExpNormalized": lambda z: sp.exp(z - sp.Rational(1, 2)),
    "Sign": sp.sign,
    "Polynomial": lambda z: 1 + z - z**2 / 2 + z**4 / 10,
    **{f"Monomial {n}": (lambda z, n=n: z**n) for n in range(6)},
    **{f"RectifiedMonomial {n}": (lambda z, n=n: z**n * sp.Heaviside(z, sp.Rational(1, 2))) for n in range(6)},
    **{f"Hermite {n}": (lambda z, n=n: _hermite(n, z)) for n in range(7)},
}
LAWS = [(1.3, 0.8, 0.4), (0.7, 0.7, -0.5), (0.2, 1.6, 0.5)]


@pytest.mark.parametrize("name", PEER)
def test_closed_and_right(name: str) -> None:
    f = PEER[name]
    E = expectation(f(u) * f(v), (u, v))
    assert E.tier == "closed form" and E.bound == 0.0
    values = jax.jit(lambda x: jnp.broadcast_to(functions.to_jax(f(u), (u,))(x), jnp.shape(x)))
    for law in LAWS:
        known = {(0, 0): law[0], (0, 1): law[2], (1, 1): law[1]}
        want = references.split_plane(values, values, law, ([0.0], [0.0]))
        size = np.sqrt(references.split_plane(lambda x: values(x) ** 2, lambda x: 1 + 0 * x, law, ([0.0], [])))
        got = float(E.value([jnp.asarray(known[e]) for e in E.needs]))
        assert abs(got - want) < 1e-12 * max(1.0, size**2), (law, got, want)
