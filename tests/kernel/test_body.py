"""Elementwise instructions as JAX functions of values, as they are sampled."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import sympy

from tensorprog.ir import Nonlin, Phi, Weight
from tensorprog.ir.phi import vector
from tensorprog.kernel.body import plain

Z = tuple(vector(i) for i in range(3))


def function(expr: sympy.Expr) -> tuple[np.ndarray, np.ndarray]:
    """At points of which some coordinates are equal."""
    weights = [Weight(f"w{i}", (1,), (Fraction(1),), 1.0, 1.0, ((Fraction(0), Fraction(1)),)) for i in range(3)]
    points = np.random.default_rng(0).integers(-2, 3, (3, 500)).astype(float)
    return np.asarray(plain(Nonlin(Phi(expr, 3), tuple(weights), ()))(*points)), points


def test_steps_of_what_is_chosen_by_a_condition() -> None:
    """A maximum of what is kept at the place of another maximum alone: conditions of conditions, at ties too."""
    kept = sympy.Piecewise((Z[0], sympy.Eq(Z[0], Z[1] + sympy.Max(0, Z[2]))), (0, True))
    found, (a, b, c) = function(sympy.Heaviside(Z[1] - kept / 2, sympy.S.Half) * Z[2])
    wanted = np.heaviside(b - np.where(a == b + np.maximum(0, c), a, 0) / 2, 0.5) * c
    np.testing.assert_array_equal(found, wanted)
