"""Which cases of many alike run every day: compiling a kernel takes seconds; `make long` and `make slow` run the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["everyday"]


def everyday(cases: Iterable[Any], slow: Collection[str] = (), long: Collection[str] = ()) -> list[Any]:
    """The cases as parameters by their names, those named `slow` and `long`, of which others show the like, marked so."""
    cases = list(cases)
    marks = dict.fromkeys(map(str, cases), ())
    marks |= dict.fromkeys(slow, pytest.mark.slow) | dict.fromkeys(long, pytest.mark.long)
    unknown = set(marks) - set(map(str, cases))
    assert not unknown, unknown
    twice = set(slow) & set(long)
    assert not twice, twice
    return [pytest.param(c, marks=marks[str(c)], id=str(c)) for c in cases]
