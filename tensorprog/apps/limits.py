"""Where a sequence that was followed for so many steps leads: its limit, its rate or its power of growth, each with an estimate of its error.

Sequences of depth converge like a power of a number, away from criticality, or like a power of the depth, at it and where one weight
stands in all blocks. Aitken's process speeds up the first kind and Brezinski's theta algorithm both (Brezinski 1971; Smith and Ford 1979
measured that it is among the two most reliable). Each is repeated, and of all the sequences so made the one is taken that has changed least
over its last third; four times that change, and the distance from the second best, are the error. It is an estimate and no bound: what shows
itself only later is not seen. A sequence that goes one way without slowing down has no limit, though the theta algorithm would give one (of
l^0.3 it is 0), unless Aitken's process shows that it is a power of a number near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "limit", "power", "rate"]

Terms = Sequence[float] | np.ndarray

ROUNDS = 3  # of each process
SAFETY = 4.0  # a remainder like l^(-1/2) has changed by 0.22 of itself over the last third
STEADY = 0.95  # of what it changed by in the quarter before: no slowing down
CLEAR = 1e-2  # of what it changed by in its later half
LEAST = 6  # terms that a limit is read off


class Estimate(NamedTuple):
    """A number and the estimate of its error."""

    value: float
    error: float


def limit(terms: Terms) -> Estimate:
    """The limit of a sequence; an infinite error where it has none, fewer than 6 terms, or some that are not finite."""
    s = np.asarray(terms, float)
    if len(s) < LEAST or not np.isfinite(s).all():
        return Estimate(float(s[-1]) if len(s) else math.nan, math.inf)
    noise, goes_on = 1e-15 * len(s) * float(np.abs(s).max()), _goes_on(s)
    made = _transformed(s, (_aitken,) if goes_on else (_aitken, _theta))
    found = [Estimate(float(t[-1]), SAFETY * float(np.ptp(_last_third(t, len(s)))) + noise) for t in made]
    best, second = sorted(found, key=lambda e: e.error)[:2] if len(found) > 1 else found * 2
    best = Estimate(best.value, best.error + abs(best.value - second.value))
    behind = (best.value - s[-1]) * (s[-1] - s[-2]) < 0  # what the powers of a number above 1 come from
    if goes_on and (behind or best.error > CLEAR * abs(s[-1] - s[len(s) // 2 - 1])):
        return Estimate(float(s[-1]), math.inf)
    return best


def rate(terms: Terms) -> Estimate:
    """The factor by which the absolute values of a sequence change with each term, in the limit."""
    s = np.abs(np.asarray(terms, float))
    if not np.isfinite(s).all() or not s.all():
        return Estimate(0.0, 0.0) if len(s) and not s[-1] and np.isfinite(s).all() else Estimate(math.nan, math.inf)
    found = limit(np.diff(np.log(s)))
    value = math.exp(min(found.value, 700.0))
    return Estimate(value, value * found.error)


def power(terms: Terms, first: int = 1) -> Estimate:
    """The power of its number with which a positive sequence grows, in the limit. first: the number of the first term."""
    s = np.asarray(terms, float)
    if not np.isfinite(s).all() or not (s > 0).all():
        return Estimate(math.nan, math.inf)
    return limit(np.diff(np.log(s)) / np.diff(np.log(np.arange(first, first + len(s)))))


def _goes_on(s: np.ndarray) -> bool:
    """Does it go one way, in its later half no less far than in the quarter before? (c + a l^p does so for p >= 0, a logarithm too.)"""
    quarter, half, end = s[len(s) // 4 - 1], s[len(s) // 2 - 1], s[-1]
    way = np.diff(s[len(s) // 2 - 1 :])
    one_way = bool((way > 0).all() or (way < 0).all())
    return one_way and abs(end - half) > max(STEADY * abs(half - quarter), 1e-13 * len(s) * abs(end))


def _last_third(t: np.ndarray, whole: int) -> np.ndarray:
    return t[-max(3, whole // 3) :]


def _transformed(s: np.ndarray, processes: Sequence[Callable[[np.ndarray], np.ndarray]]) -> Iterator[np.ndarray]:
    """The sequence, and what the processes make of it while enough is left."""
    yield s
    for process in processes:
        t = s
        for _ in range(ROUNDS):
            t = process(t)
            if len(t) < max(LEAST, len(s) // 2) or not np.isfinite(t).all():
                break
            yield t


def _aitken(s: np.ndarray) -> np.ndarray:
    one = np.diff(s)
    return s[2:] - _over(one[1:] ** 2, np.diff(one))


def _theta(s: np.ndarray) -> np.ndarray:
    """One round of the theta algorithm: exact for c + a r^l, and for c + a/(l + b)."""
    one = np.diff(s)
    two = np.diff(one)
    # s[1] - d0 d1 dd1 / (d2 dd0 - d0 dd1), in the differences d and their differences dd (Weniger 1989, equation 10.3-1)
    return s[1:-2] - _over(one[:-2] * one[1:-1] * two[1:], one[2:] * two[:-1] - one[:-2] * two[1:])


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where there is nothing left to speed up."""
    return np.divide(a, b, out=np.zeros_like(a), where=np.abs(b) > 1e-300)
