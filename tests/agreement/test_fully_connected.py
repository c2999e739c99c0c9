"""Jacot et al. 2018: fully connected networks of depth 1 to 30 with biases, and every closed form."""

from __future__ import annotations

import numpy as np
import pytest

from tests.agreement.common import agrees, compiled, relative
from tests.cases import Case, fully_connected
from tests.everyday import everyday

SLOW = (
    "fc-relu-depth10-wv2.0-bv0.1",
    "fc-relu-depth30-wv2.0-bv0.0",
    "fc-relu-depth5-wv2.0-bv0.1",
    "fc-relu-depth20-wv2.0-bv0.1",
    "fc-erf-depth5-wv1.5-bv0.2",
    "fc-erf-depth20-wv1.5-bv0.2",
    "fc-erf-depth10-wv1.5-bv0.2",
)
LONG = (
    "fc-erf(relu)-depth2-wv1.3-bv0.1",
    "fc-relu-depth30-wv2.0-bv0.1",
    "fc-erf-depth30-wv1.5-bv0.2",
    "fc-relu-depth4-wv2.0-bv0.0",
    "fc-erf-depth4-wv1.0-bv0.0",
)


@pytest.mark.parametrize("case", everyday(fully_connected.CASES, SLOW, LONG))
def test_agrees(case: Case) -> None:
    agrees(case)


@pytest.mark.parametrize("case", [c for c in fully_connected.DEPTHS if "depth3" in c.name and c.sampled], ids=str)
def test_the_number_of_outputs_does_not_matter(case: Case) -> None:
    x = case.inputs(3)
    one, seven = compiled(case)(x), compiled(case, features=7)(x)
    assert relative(seven.nngp, np.asarray(one.nngp)) < 1e-14
    assert relative(seven.ntk, np.asarray(one.ntk)) < 1e-14
