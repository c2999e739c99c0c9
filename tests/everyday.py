"""Which cases of many alike run every day: compiling a kernel takes seconds, and `make slow` runs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["everyday"]


def everyday(cases: Iterable[Any], slow: Collection[str]) -> list[Any]:
    """The cases as parameters by their names, those named `slow`, of which others show the like, among the slow tests."""
    cases = list(cases)
    unknown = set(slow) - set(map(str, cases))
    assert not unknown, unknown
    return [pytest.param(c, marks=pytest.mark.slow if str(c) in slow else (), id=str(c)) for c in cases]
