"""Layer norm and residual networks, with and without it."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, normalised


@pytest.mark.parametrize("case", normalised.CASES, ids=str)
def test_agrees(case: Case) -> None:
    agrees(case)
