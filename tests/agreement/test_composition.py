"""Sums, products, concatenations, pooling, raw inputs and tied weights: no silent mistake."""

from __future__ import annotations

import pytest

import tensorprog as tp
from tests.agreement.common import agrees
from tests.cases import Case, composition
from tests.everyday import everyday

SLOW = (
    "dependent-product",
    "one-erf-of-relu",
    "one-relu-of-erf",
    "one-relu-times-erf",
    "one-sigmoid-times-sigmoid",
    "twice-along-positions-flatten",
    "pooled-flatten",
    "plus-pool-before",
)
LONG = (
    "plus-pool-after",
    "twice-along-positions-global",
    "tied-gelu",
    "unequal-widths-normed",
    "doubled-erf-after",
    "doubled-erf-before",
)


@pytest.mark.parametrize("case", everyday(composition.CASES, SLOW, LONG))
def test_agrees(case: Case) -> None:
    agrees(case)


@pytest.mark.parametrize("case", everyday(composition.AFTER_POOLING, ["pool-then-tanh"]))
def test_a_nonlinearity_after_pooling_is_refused(case: Case) -> None:
    """Its argument is not Gaussian. When a rule covers it, these cases belong with the others."""
    with pytest.raises(tp.UnsupportedError, match="many positions of a hidden layer"):
        agrees(case)
