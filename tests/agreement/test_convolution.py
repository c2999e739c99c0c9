"""Arora et al. 2019: convolutional networks, padding, strides, dilation, with and without pooling."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, convolution
from tests.everyday import everyday

SLOW = (
    "conv-strided-global",
    "conv-explicit-global",
    "conv-valid-global",
    "conv-erf-global",
    "conv-3d-global",
    "conv-bias-global",
    "conv-even-window-global",
    "conv-2d-global",
    "conv-circular-flatten",
    "conv-arora-flatten",
    "conv-1d-flatten",
    "conv-1d-circular-global",
    "conv-1d-strided-valid-global",
)
LONG = (
    "conv-mixed-global",
    "conv-circular-global",
    "conv-strided-flatten",
    "conv-3d-flatten",
    "conv-valid-flatten",
    "conv-bias-flatten",
)


@pytest.mark.parametrize("case", everyday(convolution.CASES, SLOW, LONG))
def test_agrees(case: Case) -> None:
    agrees(case)
