"""The modules themselves, at growing width, against the kernels compiled from them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import tensorprog as tp
from examples import flax_models
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


def test_standard_at_a_width() -> None:
    """Entries that are summed over the width move by sqrt(N/n), all others by one."""
    case = CASES["flax: perceptron"]
    net = case.network(parametrization="standard", at_width=4, init={"layers.0.kernel": tp.Gaussian(std=5**-0.5)})
    with jax.enable_x64(True):
        limit = tp.compile(net, case.inputs()[0])(case.inputs())
    summed = {"layers.1.kernel", "readout.kernel"}
    scales = lambda width: {n: (4 / width) ** 0.5 if n in summed else 1.0 for n in net.laws}
    check(report(case, scales, {"layers.0.kernel": 5**-0.5}, limit, WIDTHS, DRAWS, case.inputs()), 0.045)


def maximal_update(width: int, rngs: nnx.Rngs, features: int = 1) -> flax_models.MLP:
    """The perceptron as Tensor Programs V, table 3 has it: a readout of variance 1/n^2."""
    model = flax_models.evaluated(width, rngs, features)
    model.readout = nnx.Linear(width, features, kernel_init=nnx.initializers.normal(1 / width), rngs=rngs)
    return model


def test_maximal_update() -> None:
    """sqrt(n) times the model; its rates n, 1 and 1/n are then 1, 1/n and 1/n^2."""
    case = CASES["flax: perceptron"]
    net = case.network(parametrization="mup", init={"layers.0.kernel": tp.Gaussian(std=5**-0.5)})
    with jax.enable_x64(True):
        limit = tp.compile(net, case.inputs()[0])(case.inputs())
    model = replace(case, build=maximal_update, call=lambda m, x: m(x) * m.readout.in_features**0.5)
    rates = {"layers.1.kernel": -0.5, "readout.kernel": -1.0, "readout.bias": -0.5}
    scales = lambda width: {name: float(width) ** rates.get(name, 0.0) for name in net.laws}
    check(report(model, scales, {"layers.0.kernel": 5**-0.5}, limit, WIDTHS, DRAWS, case.inputs()), 0.045)


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
