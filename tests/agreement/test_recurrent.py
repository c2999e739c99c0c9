"""Tensor Programs I and II: recurrent networks, by a loop and by lax.scan."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, recurrent


@pytest.mark.parametrize("case", recurrent.CASES, ids=str)
def test_agrees(case: Case) -> None:
    agrees(case)
