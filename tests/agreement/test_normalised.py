"""Layer norm and residual networks, with and without it."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, normalised
from tests.everyday import everyday


@pytest.mark.parametrize("case", everyday(normalised.CASES, ["norm-image-relu"]))
def test_agrees(case: Case) -> None:
    agrees(case)
