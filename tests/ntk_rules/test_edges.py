"""Values and all first and second derivatives from correlation -1 to 1, from tiny to huge variances, in both precisions.

True values by `high_precision.py`, whose closed forms in one Gaussian given the other share nothing with the engine's. The
variances are powers of four and the correlations short binary fractions, so that both precisions are given the same law.
Conventions at correlation +-1, where v is a multiple of u: halfway at jumps, and what is infinite there (two delta functions
that meet) is left out: the finite part.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from ntk_rules import expectation

from . import high_precision
from .test_closed import ACTIVATIONS, relu

u, v = sp.symbols("u v", real=True)
TINY, HUGE = 2.0**-40, 2.0**26  # about 1e-12 and 1e8
VARIANCES = [(1.0, 1.0), (TINY, TINY), (HUGE, HUGE), (TINY, HUGE)]
CORRELATIONS = [1.0, -1.0, 1 - 2.0**-50, 2.0**-20 - 1, 0.5, 0.0]  # 2^-50 is about 1e-15; in single precision that is 1
# (m, n) and the factor: d/dC_ij is the expectation of f^(m)(u) g^(n)(v) by Price's theorem.
QUANTITIES = {
    (): ((0, 0), 1), ((0, 0),): ((2, 0), 1 / 2), ((0, 1),): ((1, 1), 1), ((1, 1),): ((0, 2), 1 / 2),
    ((0, 0), (0, 0)): ((4, 0), 1 / 4), ((0, 0), (0, 1)): ((3, 1), 1 / 2), ((0, 0), (1, 1)): ((2, 2), 1 / 4),
    ((0, 1), (0, 1)): ((2, 2), 1), ((0, 1), (1, 1)): ((1, 3), 1 / 2), ((1, 1), (1, 1)): ((0, 4), 1 / 4),
}  # fmt: skip
NAMES = {
    "relu": relu, "abs": sp.Abs, "step": ACTIVATIONS["step"], "elu": ACTIVATIONS["elu"], "relu6": ACTIVATIONS["relu6"],
    "hard tanh": ACTIVATIONS["hard tanh"], "hard sigmoid": ACTIVATIONS["hard sigmoid"], "hard swish": ACTIVATIONS["hard swish"],
    "celu": ACTIVATIONS["celu"], "threshold": lambda z: sp.Piecewise((z, z > 1), (20, True)),
    "erf": sp.erf, "offset erf": lambda z: sp.erf(2 * z + sp.Rational(3, 4)), "sigmoid-like": ACTIVATIONS["sigmoid-like"],
    "squared relu": ACTIVATIONS["squared relu"], "offset relu": lambda z: relu(z + sp.Rational(1, 2)),
}  # fmt: skip


def at(core, laws: list[tuple[float, float, float]], dtype: type) -> np.ndarray:
    known = dict(zip(((0, 0), (1, 1), (0, 1)), np.array(laws).T, strict=True))
    return np.broadcast_to(
        np.asarray(core.value([jnp.asarray(known[e], dtype) for e in core.needs], ()), float), len(laws)
    )


def scale(
    names: tuple[str, str], orders: tuple[int, int], factor: float, q1: float, q2: float, plain: list[float]
) -> float:
    """The sizes of both factors multiplied, or the largest value far from the edges."""
    sizes = []
    for name, order, q in zip(names, orders, (q1, q2), strict=True):
        f = high_precision.PIECES[name]
        for _ in range(order):
            f = f.derivative()
        sizes.append(_size(f, q))
    return max(*map(abs, plain), factor * math.prod(sizes))


def _size(f: high_precision.Function, q: float) -> float:
    """E[f^2]^(1/2) of the smooth parts; of each delta function of order n the density there over std^n."""
    smooth = high_precision.Distribution(f.parts) if isinstance(f, high_precision.Distribution) else f
    std = mp.sqrt(q)
    square = high_precision.pair(smooth, smooth, q, q, q) if f.parts else 0
    return float(mp.sqrt(square) + sum(abs(c) * mp.npdf(a / std) / std ** (n + 1) for a, n, c in f.deltas))


@pytest.mark.slow
@pytest.mark.parametrize("path", QUANTITIES, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("celu", "threshold")])
def test_against_mpmath(name: str, path: tuple[tuple[int, int], ...]) -> None:
    check((name, name), path)


# An exponential slower than exp(z); a jump far out at tiny variances; second derivatives in which large terms must cancel; a steep smooth
# factor beside a kinked one; a Gaussian off its centre at huge variances; an error function of a tiny argument.
@pytest.mark.parametrize(
    "names, path",
    [
        pytest.param(("threshold", "threshold"), ((0, 0), (0, 0)), marks=pytest.mark.slow),
        pytest.param(("threshold", "threshold"), ((0, 1), (0, 1)), marks=pytest.mark.long),
        pytest.param(("celu", "celu"), ((0, 0),), marks=pytest.mark.slow),
        pytest.param(("celu", "celu"), ((0, 1), (0, 1)), marks=pytest.mark.slow),
        pytest.param(("elu", "relu"), ((1, 1), (1, 1)), marks=pytest.mark.slow),
        pytest.param(("hard tanh", "relu"), ((0, 0), (0, 1)), marks=pytest.mark.slow),
        pytest.param(("offset relu", "offset erf"), ((0, 1), (0, 1)), marks=pytest.mark.long),
        *(
            pytest.param(names, path, marks=pytest.mark.slow)
            for names, path in (
                (("elu", "erf"), ()),
                (("elu", "erf"), ((0, 0),)),
                (("threshold", "erf"), ((0, 0),)),
                (("sigmoid-like", "sigmoid-like"), ((0, 1),)),
                (("squared relu", "hard swish"), ((0, 0), (1, 1))),
                (("offset relu", "offset relu"), ((0, 1), (1, 1))),
            )
        ),
    ],
    ids=str,
)
def test_others_against_mpmath(names: tuple[str, str], path: tuple[tuple[int, int], ...]) -> None:
    check(names, path)


def check(names: tuple[str, str], path: tuple[tuple[int, int], ...]) -> None:
    """A derivative of E[f(u) g(v)] at all variances and correlations, in both precisions; numbers everywhere."""
    (f, g), (orders, factor) = (high_precision.PIECES[name] for name in names), QUANTITIES[path]
    core = expectation(NAMES[names[0]](u) * NAMES[names[1]](v), (u, v))._core
    for entry in path:
        core = core.derivative(entry)
    for q1, q2 in [*VARIANCES, *([(HUGE, TINY)] if f is not g else [])]:
        laws = [(q1, q2, rho * (q1 * q2) ** 0.5) for rho in CORRELATIONS]
        want = [factor * float(high_precision.price(f, g, orders, law)) for law in laws]
        size = scale(names, orders, factor, q1, q2, want[-2:])
        # Derivatives that quadrature answers are sums of hundreds of terms, some units of rounding more than a value is off.
        # Second ones near correlation -1 divide by powers of the sine.
        for dtype, limit in ((np.float64, 4e-12 if path else 1e-12), (np.float32, 4e-6 if len(path) == 2 else 1e-6)):
            for law, rho, got, exact in zip(laws, CORRELATIONS, at(core, laws, dtype), want, strict=True):
                assert np.isfinite(got) or not size < 1e30, (law, dtype.__name__, got)
                if dtype is np.float32 and (0 < 1 - rho < 1e-8 or size < 1e-30 or not size < 1e30):
                    continue  # single precision cannot hold the correlation, or the answer
                assert abs(got - exact) <= limit * max(size, abs(exact)), (law, dtype.__name__, got, exact, size)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_relu_at_the_edges(dtype: type) -> None:
    """The everyday part: values and slopes of ReLU's dual against mpmath at the edges."""
    core, f = expectation(relu(u) * relu(v), (u, v))._core, high_precision.PIECES["relu"]
    laws = [(q, q, rho * q) for q in (TINY, HUGE) for rho in (1.0, -1.0, 2.0**-20 - 1)]
    for path in ((), ((0, 1),), ((0, 0),)):
        (orders, factor), here = QUANTITIES[path], core
        for entry in path:
            here = here.derivative(entry)
        for law, got in zip(laws, at(here, laws, dtype), strict=True):
            want = factor * float(high_precision.price(f, f, orders, law))
            size = law[0] if path == () else 1
            assert abs(got - want) <= (1e-12 if dtype is np.float64 else 1e-6) * size, (law, path)


@pytest.mark.parametrize(
    "name", [pytest.param("shifted erf", marks=pytest.mark.long), pytest.param("gabor", marks=pytest.mark.slow)]
)
def test_high_powers_neither_overflow_nor_underflow(name: str) -> None:
    """Second derivatives at variances 1e8 and 1e-12: powers beyond single precision's range in both halves of a fraction.

    In double precision they are within range; the scale is the largest of them over the correlations, which is that at 1 or -1.
    """
    f = ACTIVATIONS[name]
    slope = expectation(f(u) * f(v), (u, v))._core.derivative((0, 1)).derivative((0, 1))
    for q in (HUGE, TINY):
        laws = [(q, q, rho * q) for rho in (1.0, -1.0, 0.5, 0.0)]
        single, double = (at(slope, laws, dtype) for dtype in (np.float32, np.float64))
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-6 * np.abs(double).max())


@pytest.mark.slow
def test_kinks_that_coincide_count_half_on_either_side() -> None:
    """d/dC_00 of hard tanh's dual at correlation 1: E[(delta(u + 1) - delta(u - 1)) f(v)]/2 = -p(1), compiled or not, at any variance."""
    E = expectation(ACTIVATIONS["hard tanh"](u) * ACTIVATIONS["hard tanh"](v), (u, v))
    slope = E._core.derivative((0, 0))
    q = np.logspace(-1, 6, 57)
    got = at(slope, [(x, x, x) for x in q], np.float64)
    np.testing.assert_allclose(got, -np.exp(-1 / (2 * q)) / np.sqrt(2 * np.pi * q), rtol=1e-11)
