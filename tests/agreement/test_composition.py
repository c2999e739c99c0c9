"""Sums, products, concatenations, pooling, raw inputs and tied weights: no silent mistake."""

from __future__ import annotations

import pytest

import tensorprog as tp
from tests.agreement.common import agrees, everyday
from tests.cases import Case, composition

SLOW = (
    "one-relu-of-erf",
    "twice-along-positions-flatten",
    "pooled-flatten",
    "plus-pool-before",
)


@pytest.mark.parametrize("case", everyday(composition.CASES, SLOW), ids=str)
def test_agrees(case: Case) -> None:
    agrees(case)


@pytest.mark.parametrize("case", composition.AFTER_POOLING, ids=str)
def test_a_nonlinearity_after_pooling_is_refused(case: Case) -> None:
    """Its argument is not Gaussian. When a rule covers it, these cases belong with the others."""
    with pytest.raises(tp.UnsupportedError, match="many positions of a hidden layer"):
        agrees(case)
