"""Sums, products, concatenations, pooling, raw inputs and tied weights: no silent mistake."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, composition


@pytest.mark.parametrize("case", composition.CASES, ids=str)
def test_agrees(case: Case) -> None:
    agrees(case)
