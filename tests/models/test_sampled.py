"""The modules themselves, at growing width, against the kernels compiled from them."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import tensorprog as tp
from tests.models.finite import check, report
from tests.models.zoo import CASES

pytestmark = pytest.mark.slow

WIDTHS = (16, 32, 64, 128)
DRAWS = (4096, 2048, 1024, 512)


@cache
def compiled(name: str, parametrization: str = "ntk") -> tuple[tp.ModelNetwork, Any, dict[str, float]]:
    """The network, its kernel, and the standard deviations of the parameters that the limit takes as Gaussian."""
    case = CASES[name]
    net = case.network(parametrization=parametrization)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tp.LawWarning)
        kernel = tp.compile(net, case.inputs()[0], tolerance=case.tolerance)
    taken = net.law_matters(kernel.program)
    assert bool(taken) == any(w.category is tp.LawWarning for w in caught)
    return (
        net,
        kernel,
        {n: net.laws[n].std(1) for n in taken} | {n: law.std(1) for n, law in net.laws.items() if law.given},
    )


@pytest.mark.parametrize("name", CASES)
def test_ntk(name: str) -> None:
    """Every parameter moves in proportion to how it starts."""
    case, (net, kernel, redrawn) = CASES[name], compiled(name)
    scales = lambda width: {n: s.std if s.tangent_std is None else s.tangent_std for n, s in net.init(width).items()}
    with jax.enable_x64(True):
        limit = kernel(case.inputs())
    # At these widths what strays most in the convolutions of Equinox are the biases of variance 1/(27 n), of the next order.
    check(
        report(case, scales, redrawn, limit, WIDTHS, DRAWS, case.inputs()),
        0.045,
        1.0 if name == "equinox: convolutions" else 0.5,
    )


@pytest.mark.parametrize("name", ["flax: perceptron", "equinox: perceptron", "equinox: convolutions"])
def test_standard(name: str) -> None:
    """Plain gradients of every parameter, and the kernel divided by the width."""
    case, (net, kernel, redrawn) = CASES[name], compiled(name, "standard")
    with jax.enable_x64(True):
        limit = kernel(case.inputs())
    check(
        report(case, lambda width: dict.fromkeys(net.laws, width**-0.5), redrawn, limit, WIDTHS, DRAWS, case.inputs()),
        0.045,
    )


def test_the_law_of_a_first_layer_matters() -> None:
    """The caveat is no formality: with the module's own uniform entries and one input feature the limit is another."""
    case = CASES["equinox: perceptron"]
    net, kernel, redrawn = compiled("equinox: perceptron")
    scales = lambda width: {n: s.std for n, s in net.init(width).items()}
    xs = 3 * np.eye(5)[:3]
    with jax.enable_x64(True):
        limit = kernel(xs)
    draws = [4 * count for count in DRAWS]  # to tell a difference of some hundredths
    own = report(case, scales, {}, limit, WIDTHS, draws, xs)
    assert np.any(np.abs(own.offset) > 6 * own.error), own
    check(report(case, scales, redrawn, limit, WIDTHS, draws, xs), 0.03)
