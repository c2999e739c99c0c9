"""Tensor Programs I and II: recurrent networks, by a loop and by lax.scan."""

from __future__ import annotations

import pytest

from tests.agreement.common import agrees
from tests.cases import Case, recurrent
from tests.everyday import everyday

SLOW = ("rnn-loop-erf-average", "rnn-loop-relu-average", "rnn-scan-erf-average", "rnn-scan-relu-average")


@pytest.mark.parametrize("case", everyday(recurrent.CASES, SLOW))
def test_agrees(case: Case) -> None:
    agrees(case)
