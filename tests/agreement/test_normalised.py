"""Layer norm and residual networks, with and without it."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, normalised
from tests.everyday import everyday

SLOW = (
    "norm-image-relu",
    "norm-before-gelu",
    "plus-norm-before-gelu",
    "norm-before-erf-gain",
    "norm-before-erf-shift",
    "residual-gelu-5-plain",
    "residual-erf-10-normed",
)
LONG = (
    "norm-pixels-relu",
    "residual-gelu-3-normed",
    "norm-after-gelu",
    "plus-norm-after-gelu",
    "norm-before-erf-gain-shift",
)


@pytest.mark.parametrize("case", everyday(normalised.CASES, SLOW, LONG))
def test_agrees(case: Case) -> None:
    agrees(case)
