"""Variances beyond what quadrature follows are refused, and up to there the diagonal is right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

KERNEL = tp.compile(lambda x: nn.dense(jnp.tanh(nn.dense(x)), features=1), jnp.zeros(1))


def diagonal(variance: float) -> tuple[float, float]:
    """E[tanh^2] and the NTK by the trapezoidal rule in arcsinh u, which resolves the step at zero and the bell alike."""
    t = np.linspace(-1, 1, 20001) * np.arcsinh(400 * variance**0.5)
    u, weights = np.sinh(t) / 40, np.cosh(t) / 40 * (t[1] - t[0])
    weights = weights * np.exp(-(u**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    square = weights @ np.tanh(u) ** 2
    return square, square + variance * (weights @ (1 - np.tanh(u) ** 2) ** 2)


@pytest.mark.parametrize("wide", [True, False])
def test_what_is_not_refused_is_right(wide: bool) -> None:
    """Of 16 the diagonal was off by 1e-4 in single precision, of 100 by 8 %, of 10^6 by a factor of 90."""
    refused = []
    with jax.enable_x64(wide):
        for variance in (1.0, 9.0, 16.0, 40.0, 100.0, 1e6):
            x = np.full((1, 1), variance**0.5, np.float64 if wide else np.float32)
            try:
                found = KERNEL(x)
            except tp.InputError:
                refused.append(variance)
                continue
            for got, want in zip(found, diagonal(variance), strict=True):
                np.testing.assert_allclose(got[0, 0], want, rtol=1e-3)  # what is allowed at most
    assert refused == ([100.0, 1e6] if wide else [40.0, 100.0, 1e6])


def test_refusals_name_function_and_variance_in_every_call() -> None:
    x = np.linspace(1, 100, 300)[:, None]
    loud = tp.joint(lambda x: nn.dense(jax.nn.swish(nn.dense(x)), features=1), jnp.zeros(1))
    for call in (KERNEL, KERNEL.diag, lambda x: KERNEL(x[:1], x), loud):
        with pytest.raises(tp.InputError, match=r"(tanh|logistic)(.|\n)*variance of \d(.|\n)*scale the inputs down"):
            call(x)


def test_closed_forms_have_no_limit() -> None:
    kernel = tp.compile(lambda x: nn.dense(jax.lax.erf(nn.dense(x)), features=1), jnp.zeros(1))
    assert kernel.functions.steps is not None and kernel.functions.steps.strained is None
    np.testing.assert_allclose(kernel(np.full((1, 1), 1e9)).nngp[0, 0], 1.0, rtol=1e-8)
