"""Variances beyond what quadrature follows are refused, and up to there kernels are right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn


@cache
def compiled(phi: Callable, size: int = 1) -> tp.Kernel:
    """One hidden layer, made when a test first asks: every worker imports this file."""
    return tp.compile(lambda x: nn.dense(phi(nn.dense(x)), features=1), jnp.zeros(size))


def diagonal(variance: float) -> tuple[float, float]:
    """E[tanh^2] and the NTK by the trapezoidal rule in arcsinh u, which resolves the step at zero and the bell alike."""
    t = np.linspace(-1, 1, 20001) * np.arcsinh(400 * variance**0.5)
    u, weights = np.sinh(t) / 40, np.cosh(t) / 40 * (t[1] - t[0])
    weights = weights * np.exp(-(u**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    square = weights @ np.tanh(u) ** 2
    return square, square + variance * (weights @ (1 - np.tanh(u) ** 2) ** 2)


@pytest.mark.parametrize("wide", [True, False])
def test_diagonals_are_right_at_every_variance(wide: bool) -> None:
    """Of 16 the diagonal was off by 1e-4 in single precision, of 100 by 8 %, of 10^6 by a factor of 90."""
    kernel = compiled(jnp.tanh)
    with jax.enable_x64(wide):
        for variance in (1e-12, 1.0, 16.0, 40.0, 100.0, 1e4, 1e6, 1e10, 1e14):
            x = np.full((1, 1), variance**0.5, np.float64 if wide else np.float32)
            for found in (
                (kernel(x), kernel.diag(x)) if variance <= 1e6 else (kernel.diag(x),)
            ):  # pairs end at 1e6 and 1e8
                for got, want in zip(found, diagonal(variance), strict=True):
                    np.testing.assert_allclose(got.item(), want, rtol=1e-11 if wide else 2e-6)


def soft_sign_slope(x: np.ndarray) -> np.ndarray:
    return (1 + np.abs(x)) ** -2.0


@pytest.mark.parametrize(
    ("phi", "function", "slope"),
    [
        (jnp.tanh, np.tanh, lambda x: 1 / np.cosh(np.clip(x, -300, 300)) ** 2),
        pytest.param(jax.nn.soft_sign, lambda x: x / (1 + np.abs(x)), soft_sign_slope, marks=pytest.mark.long),
    ],
    ids=["tanh", "soft_sign"],
)
def test_pairs_are_right_beyond_the_usual_rules(phi, function, slope) -> None:
    """E[f(u) f(v)] and E[f'(u) f'(v)] by sums over the law of v given u."""
    kernel = compiled(phi, 2)
    with jax.enable_x64():
        for s, t, rho in ((10.0, 30.0, 0.9), (30.0, 30.0, 1 - 1e-6), (100.0, 100.0, -0.5), (1.0, 100.0, 0.999)):
            a, b = np.array([[s, 0.0]]), np.array([[rho, (1 - rho**2) ** 0.5]]) * t
            found = kernel(a * 2**0.5, b * 2**0.5)  # of two features the mean is taken
            for got, f, factor in ((found.nngp, function, 1.0), (found.ntk - found.nngp, slope, rho * s * t)):
                size = (pair(f, s, s, 1.0) * pair(f, t, t, 1.0)) ** 0.5 * abs(factor / rho)
                np.testing.assert_allclose(got[0, 0], pair(f, s, t, rho) * factor, rtol=0, atol=1e-10 * size)


def pair(f, s: float, t: float, rho: float) -> float:
    """E[f(u) f(v)], whose transitions or kinks are at zero."""
    x, weights = nodes(s, 0.0)
    if abs(rho) == 1:
        return float(weights @ (f(x) * f(rho * t / s * x)))
    inner = []
    for mean in rho * t / s * x:
        y, more = nodes(t * (1 - rho**2) ** 0.5, mean)
        inner.append(more @ f(y))
    return float(weights @ (f(x) * np.array(inner)))


GAUSS = np.polynomial.legendre.leggauss(10)


def nodes(s: float, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the law N(mean, s^2): short panels about zero and within the bell, by Gauss and Legendre."""
    about_zero = 0.02 * 2.0 ** np.arange(0, 40)
    ends = np.concatenate([[0.0], about_zero, -about_zero, mean + s * np.linspace(-9, 9, 37)])
    ends = np.unique(np.clip(ends, mean - 9 * s, mean + 9 * s))
    low, width = ends[:-1, None], np.diff(ends)[:, None]
    y = (low + width * (GAUSS[0] + 1) / 2).ravel()
    weights = (width * GAUSS[1] / 2).ravel()
    return y, weights * np.exp(-(((y - mean) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))


def test_refusals_name_function_and_variance_in_every_call() -> None:
    kernel, x = compiled(jnp.tanh), np.linspace(1, 1e6, 300)[:, None]
    loud = tp.joint(lambda x: nn.dense(jax.nn.swish(nn.dense(x)), features=1), jnp.zeros(1))
    alone = lambda x: kernel.diag(1e4 * x)  # expectations of one variable reach farther
    for call in (kernel, alone, lambda x: kernel(x[:1], x), loud):
        with pytest.raises(tp.InputError, match=r"(tanh|logistic)(.|\n)*variance of \d(.|\n)*scale the inputs down"):
            call(x)


@pytest.mark.long
@pytest.mark.parametrize("loaded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_cannot_raise_gives_nan(loaded: bool, tmp_path) -> None:
    kernel = compiled(jnp.tanh)
    call = jax.jit(kernel)
    if loaded:
        kernel.export(tmp_path / "kernel.tpk", platforms=("cpu",))
        call = tp.load(tmp_path / "kernel.tpk")
    x = np.array([[1.0], [2e3], [3e4]], np.float32)
    want = np.asarray(kernel(x[:2]).ntk)
    np.testing.assert_array_equal(np.isnan(np.asarray(jax.jit(kernel.diag)(x * 1e4).ntk)), [False, False, True])
    found = np.asarray(call(x).ntk)
    np.testing.assert_allclose(found[:2, :2], want, rtol=1e-5)  # float32, compiled in other ways
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 2]).all()
    assert np.isfinite(call(x[[0, 1, 1]]).nngp).all()


def test_what_a_series_alone_follows_is_refused_early() -> None:
    """The transition is not at zero, where the plane would be cut, but at 6: at huge variances nodes miss it."""
    kernel = compiled(lambda h: jnp.arctan(h - 6))
    kernel(np.full((1, 1), 1.0, np.float32))
    with pytest.raises(tp.InputError, match="off by more than 1e-5"):
        kernel(np.full((1, 1), 1e4, np.float32))


def test_closed_forms_have_no_limit() -> None:
    kernel = compiled(jax.lax.erf)
    assert kernel.functions.steps is not None and kernel.functions.steps.strained is None
    np.testing.assert_allclose(kernel(np.full((1, 1), 1e9)).nngp[0, 0], 1.0, rtol=1e-8)
