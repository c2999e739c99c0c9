"""What `error` states for closed forms is never less than how far they are off, in both precisions, beside mpmath with 50 digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation
from tests.everyday import everyday

from . import high_precision, references
from .test_closed import ACTIVATIONS
from .test_edges import HUGE, NAMES, TINY

u, v, a, m = sp.symbols("u v a m", real=True)
FEW = ("relu", "gelu")  # points, of which more are slow
KINKS = {"relu6": (6,), "hard sigmoid": (-3, 3), "hard swish": (-3, 3)}


def both(E, law: dict[tuple[int, int], float], dtype: type, parameters: tuple[float, ...] = ()) -> tuple[float, float]:
    """(value, stated error)."""
    arrays = [jnp.asarray(law[e], dtype) for e in E.needs]
    given = [jnp.asarray(p, dtype) for p in parameters]
    return float(E.value(arrays, given)), float(E.error(arrays, given))


@pytest.mark.parametrize("name", everyday(ACTIVATIONS, ACTIVATIONS.keys() - set(FEW), ["gelu"]))
def test_on_the_line(name: str) -> None:
    """The table of forms at correlation 1 and -1, where rounding decides most."""
    f = ACTIVATIONS[name]
    E = expectation(f(u) * f(v), (u, v))
    for q in (2.0**-4, 1.0) if name in FEW else (2.0**-20, 2.0**-4, 1.0, 2.0**3):
        scale = float(references.mean(f(u) ** 2, q, KINKS.get(name, ())))
        for rho in (1, -1):
            exact = references.mean(f(u) * f(rho * u), q, KINKS.get(name, ()))
            law = {(0, 0): q, (0, 1): rho * q, (1, 1): q}
            for dtype in (np.float32, np.float64):
                got, stated = both(E, law, dtype)
                assert abs(mp.mpf(got) - exact) <= stated, (q, rho, dtype.__name__, got, float(exact), stated)
                if name not in ("step", "sign"):  # whose slope at correlation 1 is infinite
                    assert stated <= 2e4 * np.finfo(dtype).eps * scale or q < 1, (q, rho, dtype.__name__, stated, scale)


@pytest.mark.parametrize(
    "names",
    [
        ("relu", "relu"),
        pytest.param(("step", "step"), marks=pytest.mark.slow),
        *(pytest.param((n, n), marks=pytest.mark.slow) for n in ("elu", "hard tanh", "offset erf", "threshold")),
        pytest.param(("squared relu", "hard swish"), marks=pytest.mark.slow),
        pytest.param(("elu", "erf"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_off_the_line(names: tuple[str, str]) -> None:
    """From tiny to huge variances, at correlations some units of rounding from 1 and far from it."""
    f, g = (high_precision.PIECES[name] for name in names)
    E = expectation(NAMES[names[0]](u) * NAMES[names[1]](v), (u, v))
    few = ((0.25, 4.0), (TINY, HUGE))
    for q1, q2 in few if names == ("relu", "relu") else (*few, (1.0, 1.0), (TINY, TINY), (HUGE, HUGE)):
        for rho in (1 - 2.0**-51, 1 - 2.0**-49, 1 - 2.0**-22, 2.0**-20 - 1, 0.75, 0.0):
            for dtype in (np.float32, np.float64):
                law = [float(dtype(x)) for x in (q1, q2, rho * (q1 * q2) ** 0.5)]
                got, stated = both(E, {(0, 0): law[0], (1, 1): law[1], (0, 1): law[2]}, dtype)
                exact = high_precision.pair(f, g, *law)
                assert abs(mp.mpf(got) - exact) <= stated, (law, dtype.__name__, got, float(exact), stated)


def test_with_parameters() -> None:
    """E[erf(a u + m)] = erf(m/(1 + 2 a^2 q)^(1/2)), and its derivative by q."""
    E = expectation(sp.erf(a * u + m), (u,), (a, m))
    for q, slope, mean in ((1.0, 1.0, 1e-6), (2.0**26, 0.3, 0.7), (TINY, 4.0, -2.0)):
        for dtype in (np.float32, np.float64):
            q, slope, mean = (float(dtype(x)) for x in (q, slope, mean))
            got, stated = both(E, {(0, 0): q}, dtype, (slope, mean))
            exact = mp.erf(mp.mpf(mean) / mp.sqrt(1 + 2 * mp.mpf(slope) ** 2 * mp.mpf(q)))
            assert abs(mp.mpf(got) - exact) <= stated <= 1e3 * np.finfo(dtype).eps, (q, slope, mean, dtype.__name__)


def test_of_what_nearly_coincides() -> None:
    """max(u, v) of two arguments whose difference has no digits: the standard deviation of the difference is stated to be off."""
    E = expectation(sp.Max(u, v), (u, v))
    for dtype in (np.float32, np.float64):
        q1, q2, c = (float(dtype(x)) for x in (1.0, 1 + 1e-6, 1 + 3e-7))
        got, stated = both(E, {(0, 0): q1, (0, 1): c, (1, 1): q2}, dtype)
        exact = mp.sqrt((mp.mpf(q1) + mp.mpf(q2) - 2 * mp.mpf(c)) / (2 * mp.pi))
        assert abs(mp.mpf(got) - exact) <= stated


def test_it_is_a_function_as_any_other() -> None:
    """It broadcasts, compiles and maps as the value does."""
    E = expectation(sp.Max(u, 0) * sp.Max(v, 0), (u, v))
    q = jnp.array([0.5, 1.0, 2.0])
    stated = E.error((q[:, None], 0.3 * jnp.ones((3, 3)), q))
    assert stated.shape == (3, 3) and (stated > 0).all()
    mapped = jax.jit(jax.vmap(lambda p: E.error((p, 0.3, 1.0))))(q)
    np.testing.assert_allclose(mapped, stated[:, 1], rtol=1e-6)
