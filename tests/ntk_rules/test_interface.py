"""The public interface: caching, explanations, errors, constants, doctests."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import ntk_rules
from ntk_rules import NoRule, detection, expectation, explain, functions, many
from ntk_rules.constants import snap

u, v, a = sp.symbols("u v a")


def test_equal_questions_share_their_derivation():
    x, y = sp.symbols("x y")
    first = expectation(sp.Max(u, 0) * sp.Max(v, 0), (u, v))
    for _ in range(50):
        again = expectation(sp.Max(x, 0) * sp.Max(y, 0), (x, y))
    assert again._core is first._core


def test_a_layer_traces_to_few_operations():
    E = expectation(sp.Max(u, 0) * sp.Max(v, 0), (u, v))
    text = jax.jit(lambda a, b, c: E.value((a, b, c))).lower(1.0, 0.5, 1.0).as_text()
    assert sum("stablehlo." in line for line in text.splitlines()) < 250


def test_explain_names_the_rules():
    text = explain(sp.Max(u, 0) * sp.Max(v, 0))
    assert "closed form" in text and "Stein" in text and "orthant" in text
    assert "Mehler" in explain(sp.tanh(u) * sp.tanh(v))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: expectation(u * v, (u,)), "neither gaussians"),
        (lambda: expectation("no", (u,)), "neither gaussians"),
        (lambda: expectation(u, (u, u)), "named twice"),
        (lambda: expectation(u * v, (u, v), means=(a,)), "means has 1"),
        (lambda: expectation(u * v, (u, v), independent=[(0, 2)]), "expected two indices below 2"),
        (lambda: expectation(u * v, (u, v)).value((1.0, 2.0)), "expected 1"),
        (lambda: expectation(a * u**2, (u,), (a,)).value((1.0,)), "parameters"),
        (lambda: expectation(sp.Piecewise((u, u > 0)), (u,)), "says nothing of what remains"),
        (lambda: expectation(sp.Piecewise((v, u > 0), (1, u < -1)), (u, v)), "says nothing of what remains"),
        (lambda: expectation(sp.zeta(u) * sp.tanh(u), (u,)), "no meaning in JAX"),
    ],
)
def test_bad_input_gets_one_clear_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    "given, meant",
    [
        (0.7071067811865476, sp.sqrt(2) / 2),
        (0.7978845608028654, sp.sqrt(2 / sp.pi)),
        (0.044715, sp.Rational("0.044715")),
        (0.044714998453855515, sp.Rational("0.044715")),
        (0.7071067690849304, sp.sqrt(2) / 2),
        (1 / 3, sp.Rational(1, 3)),
        (-1.5, -sp.Rational(3, 2)),
        (3.141592653589793, sp.pi),
    ],
)
def test_constants_are_recognised(given, meant):
    assert sp.simplify(snap(given) - meant) == 0


def test_other_constants_stay_exactly_themselves():
    for x in (1.0507009873554805, 0.1234567890123, 2.718281828459045):
        assert float(snap(x)) == x


def test_values_without_covariances():
    assert float(expectation(sp.Heaviside(u), (u,)).value(())) == 0.5
    E = expectation(a + 0 * u, (u,), (a,))
    assert float(E.value((), (jnp.asarray(3.0),))) == 3.0


def test_import_is_quick():
    code = "import jax, sympy, time; t = time.time(); import ntk_rules; print(time.time() - t)"
    took = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert took < 2.0


@pytest.mark.long
def test_doctests():
    for module in pkgutil.iter_modules(ntk_rules.__path__):
        found = importlib.import_module(f"ntk_rules.{module.name}")
        result = doctest.testmod(found, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, module.name


def test_kinks_of_a_jax_function_are_looked_for():
    """Jumps of the value, of the slope and of the curvature; steep is not kinked; the derivation says what was found."""
    cases = {
        (0.25,): lambda x: jnp.maximum(x - 0.25, 0) * jnp.tanh(x),
        (-1.0, 0.7): lambda x: jnp.where(x > 0.7, jnp.sin(x), jnp.maximum(x, -1.0)),
        (0.0,): lambda x: jnp.where(x > 0, x * x, 0.0) + jnp.cos(x),
        (): lambda x: jnp.tanh(300 * x) + x**3 + jnp.exp(x / 2),
    }
    for places, function in cases.items():
        found = detection.kinks_of(function)
        assert len(found) == len(places) and np.allclose(found, places, rtol=0, atol=1e-13)
    f = functions.opaque(lambda x: jnp.abs(x - 0.5) * jax.nn.sigmoid(x), "f")
    text = explain(f(u))
    assert "found: 0.5" in text and "between the kinks" in text
    plain = expectation(sp.Abs(u - sp.Rational(1, 2)) * functions.logistic(u), (u,))
    assert abs(float(expectation(f(u), (u,)).value((1.3,))) - float(plain.value((1.3,)))) < 1e-14


def test_what_sampling_would_reach_is_worked_out_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(many, "_probe", lambda *_: asked.append(1) or 3e-4)
    w = sp.Symbol("w", real=True)
    with pytest.raises(NoRule) as refused:
        expectation(sp.tanh(u * v + sp.sin(w * v) * u), (u, v, w))
    assert not asked
    for _ in range(2):
        assert "reaches 3.0e-04 at unit variances, wanted 1.0e-12; a tolerance above that" in str(refused.value)
    assert len(asked) == 1


# Of tan the mean does not exist: nodes alike on both sides of zero would make it zero. An arc cosine is NaN beyond 1, as in JAX.
@pytest.mark.parametrize("f", [sp.tan(u), 1 + sp.tan(u / 2), sp.Abs(u) * sp.tan(u), sp.acos(u)], ids=str)
def test_means_that_do_not_exist_are_refused(f):
    with pytest.raises(NoRule):
        expectation(f, (u,))


def test_what_is_close_to_those_has_a_mean():
    for f, mean in ((sp.tan(u / 20) + 1, 1.0), (sp.acos(sp.tanh(u)), math.pi / 2)):
        np.testing.assert_allclose(float(expectation(f, (u,)).value((1.0,))), mean, rtol=1e-6)


def test_a_parameter_that_jumps_has_the_slope_zero():
    for f, slope in ((sp.sign(a) * a * sp.Abs(u), 1.0), (sp.sign(a) * sp.tanh(a * u) * u, None)):
        E = expectation(f, (u,), (a,))
        value = lambda x, E=E: E.value((1.0,), (x,))
        got = float(jax.grad(value)(0.5))
        wanted = slope * math.sqrt(2 / math.pi) if slope else float(value(0.51) - value(0.49)) / 0.02
        np.testing.assert_allclose(got, wanted, rtol=1e-4)  # differences of single precision


@pytest.mark.long
def test_second_derivatives_at_kinks_that_are_parameters():
    E = expectation(sp.Max(u - a, 0) * sp.Abs(v - a), (u, v), (a,))  # of the kink of u the weight is a - a
    law = dict(zip(((0, 0), (0, 1), (1, 1)), (1.2, -0.4, 0.8), strict=True))
    with jax.enable_x64(True):
        value = lambda law: E.value([law[e] for e in E.needs], (0.3,))
        slopes = jax.grad(value)(law)
        for entry, slope in slopes.items():
            step = lambda h, entry=entry: value(law | {entry: law[entry] + h})
            np.testing.assert_allclose(float(slope), float(step(1e-5) - step(-1e-5)) / 2e-5, atol=1e-8)
