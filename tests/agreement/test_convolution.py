"""Arora et al. 2019: convolutional networks, padding, strides, dilation, with and without pooling."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, convolution


@pytest.mark.parametrize("case", convolution.CASES, ids=str)
def test_agrees(case: Case) -> None:
    agrees(case)
