"""Compiled kernels against sampled networks of the same function, by the rates of tests/sampling.py."""

from __future__ import annotations

import pytest

from tests import sampling
from tests.agreement.common import compiled
from tests.cases import Case, composition, convolution, fully_connected, normalised, recurrent

pytestmark = pytest.mark.slow

CASES = [
    case
    for module in (fully_connected, convolution, recurrent, normalised, composition)
    for case in module.CASES
    if case.sampled
]
# One of each kind in the everyday suite; the others, and more draws, in the slow one.
EVERYDAY = [
    "fc-relu-depth3-wv2.0-bv0.1",
    "fc-erf-depth3-wv1.5-bv0.2",
    "conv-1d-flatten",
    "conv-1d-global",
    "rnn-loop-erf-last",
    "rnn-loop-relu-average",
    "residual-relu-3-normed",
    "residual-relu-3-plain",
    "norm-after-relu",
    "norm-before-erf-gain-shift",
    "doubled-relu-before",
    "plus-pool-before",
    "plus-norm-before-relu",
    "one-x-times-erf",
    "one-relu-times-erf",
    "one-relu-of-erf",
    "twice-along-positions-global",
    "twice-along-width",
    "unequal-widths",
    "product-of-branches",
    "raw-nonlinearity",
    "tied-relu",
]


def kernels(case: Case, x) -> sampling.Kernels:
    k = compiled(case)(x)
    return k.nngp, k.ntk


@pytest.mark.parametrize("case", [c for c in CASES if c.name in EVERYDAY], ids=str)
def test_networks_approach_their_kernel(case: Case) -> None:
    x = case.inputs(2)
    network = sampling.tensorprog_network(case.net, x)
    sampling.check(network, kernels(case, x), widths=(12, 48, 192), draws=(4096, 2048, 768))


@pytest.mark.parametrize("name", ["raw-coefficient", "tied-relu"])
def test_bias_falls_like_one_over_width(name: str) -> None:
    """These have a bias large enough to be told from noise in many cheap small networks."""
    case = next(c for c in CASES if c.name == name)
    x = case.inputs(2)
    network = sampling.tensorprog_network(case.net, x)
    widths, draws = (8, 16, 32, 64), (60_000, 40_000, 20_000, 8_000)
    found = sampling.report(network, kernels(case, x), widths, draws)
    assert found.bias is not None, found
    assert 1.0 in found.bias, found
    assert 0.25 not in found.bias, found


# Dividing by the variance of a few rectified units has heavy tails: at width 16 one correction of the order 1/n
# does not describe the fluctuation.
HEAVY_TAILED = ("norm-after-relu", "plus-norm-after-relu")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_networks_approach_their_kernel_closely(case: Case) -> None:
    x = case.inputs(3, seed=1)
    network = sampling.tensorprog_network(case.net, x)
    if case.name in HEAVY_TAILED:
        widths, draws = (48, 64, 96, 128, 512), (16_000, 12_000, 8_000, 6_000, 2_000)
    else:
        widths, draws = (16, 32, 64, 128, 512), (20_000, 10_000, 6_000, 4_000, 1_500)
    sampling.check(network, kernels(case, x), widths, draws, resolution=0.01, seed=1)


def test_every_everyday_name_exists() -> None:
    assert set(EVERYDAY) <= {c.name for c in CASES}
