"""Closed forms at correlation 1 and -1, from tiny to huge variances, beside the one-dimensional integral they then are.

There cancelling terms and means that are nothing but rounding show: 6 C_01/C_00 - 6 decides between 0, 1/2 and 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation, explain, functions
from ntk_rules.functions import to_jax

from . import references
from .test_closed import ACTIVATIONS, numpy_of, u, v

VARIANCES = (1e-12, 1e-8, 1e-4, 0.01, 0.1, 1.0, 4.0, 10.0, 100.0, 1e4, 1e8)
RATIOS = (1.0, -1.0, 2.0, -0.5)  # v = ratio u
KINKS = np.array([-6, -3, -1, -0.3, 0, 0.3, 1, 3, 6, 10, -10, 30, -30])
# Of single precision, relative to the scale of the answer.
SINGLE = 1e-6
EVERYDAY = ("relu", "abs", "gelu", "gabor", "sin")
SLOW = ("hard tanh", "elu", "selu", "celu", "hard sigmoid", "hard swish", "squared relu", "shifted erf", "leaky relu")


def _exact(name: str) -> Callable[[sp.Expr], sp.Expr]:
    """The function by expm1: exp(z) - 1 in double precision is off by 1e-10 at z = 1e-6, and the integral by 1e-11 with it."""
    if not name.endswith("elu") or name in ("relu", "gelu", "squared relu", "leaky relu"):
        return ACTIVATIONS[name]
    return lambda z: ACTIVATIONS[name](z).replace(sp.exp, lambda x: functions.expm1(x) + 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "name",
    [
        *EVERYDAY,
        pytest.param("relu6", marks=pytest.mark.long),
        *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW),
    ],
)
@np.errstate(
    over="ignore"
)  # NumPy evaluates both branches of the reference: the exponential of the other side is not used
def test_values_where_the_plane_is_a_line(name, dtype):
    f, E = numpy_of(_exact(name)), expectation(ACTIVATIONS[name](u) * ACTIVATIONS[name](v), (u, v))
    assert E.tier == "closed form"
    value = jax.jit(E.value)
    for q in VARIANCES:
        if name == "sin" and q > 10:  # the integral oscillates faster than its panels
            continue
        for ratio in RATIOS:
            law = {(0, 0): dtype(q), (0, 1): dtype(ratio) * dtype(q), (1, 1): dtype(ratio) ** 2 * dtype(q)}
            s, places = np.sqrt(float(dtype(q))), [*(KINKS / np.sqrt(q)), *(KINKS / (ratio * np.sqrt(q)))]
            mean = lambda g, places=places: references.standard_mean(g, places)
            want = mean(lambda x, s=s, ratio=ratio: f(s * x) * f(ratio * s * x))
            scale = np.sqrt(
                mean(lambda x, s=s: f(s * x) ** 2) * mean(lambda x, s=s, ratio=ratio: f(ratio * s * x) ** 2)
            )
            got = float(value([jnp.asarray(law[e], dtype) for e in E.needs]))
            limit = 1e-12 if dtype is np.float64 else SINGLE
            assert abs(got - want) <= limit * scale, (q, ratio, got, want)


def test_the_derivation_says_where_quadrature_answers_instead():
    f = ACTIVATIONS["hard tanh"]
    assert "the closed form loses digits" in explain(f(u) * f(v))
    assert "loses digits" not in explain(ACTIVATIONS["gelu"](u) * ACTIVATIONS["gelu"](v))


@pytest.mark.slow
def test_quadrature_and_closed_form_in_one_array():
    """Rows of either kind in one call, mapped or not, with a zero variance between them."""
    f = ACTIVATIONS["hard tanh"]
    E = expectation(f(u) * f(v), (u, v))
    q = jnp.asarray([1e8, 1.0, 0.0, 1e6])
    c = 0.5 * jnp.sqrt(q[:, None] * q)
    block = E.value((q[:, None], c, q))
    mapped = jax.vmap(jax.vmap(lambda a, b, d: E.value((a, b, d)), (None, 0, 0)), (0, 0, None))(q, c, q)
    np.testing.assert_allclose(mapped, block, rtol=1e-13, atol=1e-16)
    assert bool(jnp.all(block[2] == 0)) and bool(jnp.all(block[:, 2] == 0))
    assert abs(float(block[0, 0]) - 1 / 3) < 1e-4  # nearly E[sign sign] = 2 arcsin(1/2)/pi
    assert to_jax(f(u), (u,))(2.0) == 1
