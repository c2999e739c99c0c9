"""Limits, rates and powers of sequences whose limits are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorprog.apps.limits import limit, power, rate

L = np.arange(1, 49.0)
NOISE = np.random.default_rng(0).standard_normal(48)
CONVERGE = {
    "constant": (np.ones(48), 1.0, 1e-12),
    "power of a number": (2 + 0.95**L, 2.0, 1e-11),
    "of a number near 1": (2 + 0.99**L, 2.0, 1e-9),
    "several": (1 + 0.8**L - 0.5 * 0.6**L + 0.3 * (-0.7) ** L, 1.0, 1e-3),
    "of the depth": (3 + 1 / L, 3.0, 1e-9),
    "of its root": (1 + L**-0.5, 1.0, 1e-4),
    "both": (1 + L**-0.5 * 0.9**L, 1.0, 1e-5),
    "in turns": (1 + 0.9**L * np.cos(L / 2), 1.0, 0.3),
    "noise": (1 + 1e-3 * NOISE, 1.0, 2e-2),
}


@pytest.mark.parametrize("name", CONVERGE)
def test_limits(name: str) -> None:
    """The error is no smaller than the truth, and not beside the point."""
    terms, expected, largest = CONVERGE[name]
    found = limit(terms)
    assert abs(found.value - expected) <= found.error <= largest


@pytest.mark.parametrize("terms", [np.log(L), L**0.3, L, 1.25**L, 1 + 1.01**L, -(1.3**L)], ids=str)
def test_no_limit_is_made_up(terms: np.ndarray) -> None:
    """The processes would give that of l^0.3 as 0, and that of 1.25^l as well."""
    assert limit(terms).error == math.inf


def test_rates_and_powers() -> None:
    for terms, expected in ((1.3**L / np.sqrt(L + 2), 1.3), (0.7**L * (1 + 0.5**L), 0.7), (1 + 1 / L, 1.0)):
        found = rate(-terms)
        assert abs(found.value - expected) <= found.error < 1e-4
    found = power(L**1.5 + 3 * L)
    assert abs(found.value - 1.5) < 0.1 > found.error
    assert rate(np.zeros(9)).value == 0.0 and rate(np.full(9, np.nan)).error == math.inf
    assert power(L - 2).error == math.inf and limit(L[:3]).error == math.inf
