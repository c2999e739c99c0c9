"""Kernels between two batches: a few of every family every day, since each is compiled for it again."""

from __future__ import annotations

import pytest

from tests.agreement.common import compiled, relative
from tests.cases import Case, composition, convolution, fully_connected, normalised, recurrent
from tests.everyday import everyday

CASES = [case for module in (fully_connected, convolution, recurrent, normalised, composition) for case in module.CASES]
EVERYDAY = {
    "fc-relu-depth3-wv2.0-bv0.1",
    "conv-1d-global",
    "raw-coefficient",
    "tied-relu",
}


LONG = {
    "fc-gelu-depth2-wv1.5-bv0.1",
    "rnn-loop-erf-last",
    "residual-relu-3-normed",
    "unequal-widths",
    "product-with-skip",
}


@pytest.mark.parametrize("case", everyday(CASES, {case.name for case in CASES} - EVERYDAY - LONG, LONG))
def test_between_two_batches(case: Case) -> None:
    """Both kernels, with one input in both batches."""
    x = case.inputs(5)
    nngp, ntk = case.reference(x)
    cross = compiled(case)(x[:3], x[2:])
    assert relative(cross.nngp, nngp[:3, 2:]) <= case.tolerance
    assert relative(cross.ntk, ntk[:3, 2:]) <= case.tolerance
