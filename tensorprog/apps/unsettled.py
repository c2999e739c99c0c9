"""Phases read off the kernels of many depths, where the layers have no map whose fixed point could be looked for.

What is followed: the variance of each of two inputs, their covariance, and the tangent kernels of a small change of the state before the first
block, T(x, x) and T(x, x'). With J the derivative of a state in that one, T(x, x) is the limit of tr J J^T / n, the squared length of
gradients and of small distances alike, and T(x, x') is the derivative of the covariance in that of the states before the first block. So
chi is the rate at which T(x, x) grows (Schoenholz et al. 2017, section 4), and T(x, x') has the depth scale of the correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tensorprog.apps.depth import CRITICAL, DIVERGENT, LARGEST, Phase
from tensorprog.apps.followed import Followed
from tensorprog.apps.growth import NUDGE, Growth
from tensorprog.apps.limits import Estimate, limit, power, rate
from tensorprog.apps.readouts import trained
from tensorprog.ir import Program
from tensorprog.passes.methods import choose, prepared

__all__ = ["Unsettled", "name_of", "nudged_program", "scale"]

Kernels = Sequence[tuple[np.ndarray, np.ndarray]]  # of every depth, NNGP and the tangent kernel

FOLLOWED = 48  # blocks
QUANTITIES = 10**5  # of a kernel graph, more than which are not looked at
FAR = 1000.0  # times a state, for what might grow without bound
SETTLED = 0.1  # of the largest variance, an error up to which there is a limit
NOISE = 1e-10  # of the largest variance, changes below which are rounding
CLOSE = 1e-2  # an error of chi, or what a growth must have beyond 1


class Unsettled:
    """The phases of a network whose blocks can be written as often as is asked for (`growth`), in whose state there are vectors.

    tolerance: of its kernels. populated: is its state a population of neurons? 48 blocks are followed, or 24 of populations, which cost more;
    fewer where these have too many quantities.
    """

    def __init__(self, growth: Growth, tolerance: float | None, populated: bool):
        self._growth, self._tolerance, self._populated = growth, tolerance, populated

    def phase(self, leaves1: Any, leaves2: Any, values: Any) -> Phase:
        """That of two inputs, as `Layers.phase`."""
        followed = lambda first, second: self._near.kernels(first, second, values)
        own, other, pair = followed(leaves1, None), followed(leaves2, None), followed(leaves1, leaves2)
        relative = (self._tolerance or 0.0) if self._near.sampled else 0.0
        return _phase_of(own, other, pair, self._unbounded(own, leaves1, values), relative)

    def chi(self, leaves: Any, values: Any) -> Estimate:
        """That of one input; inf where its variance grows without bound."""
        own = self._near.kernels(leaves, None, values)
        growth = self._unbounded(own, leaves, values)
        return _chi_of(own) if growth is None or math.isnan(growth.value) else Estimate(math.inf, 0.0)

    @cached_property
    def _near(self) -> Followed:
        """Networks of 1, 2, .. blocks in which a change of the state before the first is all that moves."""
        most = FOLLOWED // 2 if self._populated else FOLLOWED
        depth = FOLLOWED // 4
        found = self._to(depth, 1.0)
        while 2 * depth <= most and 4 * len(found) <= QUANTITIES:
            depth *= 2
            found = self._to(depth, 1.0)
        return found

    @cached_property
    def _far(self) -> Followed:
        """The same from a state that is much larger."""
        return self._to(self._near.depth, FAR)

    def _to(self, depth: int, factor: float) -> Followed:
        grown = self._growth.nudged(factor)
        assert grown is not None
        programs = [nudged_program(grown, k) for k in range(1, depth + 1)]
        return Followed(programs, "tangent", self._tolerance, apart=not self._populated)

    def _unbounded(self, own: Kernels, leaves: Any, values: Any) -> Estimate | None:
        """How the variance grows without bound; None where it has a limit, nan where that is open."""
        growth = _grows(own)
        if growth is None or math.isnan(growth.value):
            return growth
        return growth if _stays_large(self._far.kernels(leaves, None, values)) else Estimate(math.nan, math.inf)


def nudged_program(grown: Growth, blocks: int) -> Program:
    """The program of so many blocks in which a change of the state before the first is all that moves. Where the tangent program does not
    hold of the output, its state is read out instead. grown: nudged."""
    program = prepared(trained(grown.of(blocks), only=NUDGE))
    if choose(program).name == "tangent":
        return program
    return trained(grown.read_out(blocks), only=NUDGE)


def _chi_of(own: Kernels) -> Estimate:
    """The growth of T(x, x) with each block."""
    return rate([float(np.linalg.norm(tangent)) for _, tangent in own])


def _slope_of(pair: Kernels) -> Estimate:
    """The change of T(x, x') with each block. Where its scale is more than half of the blocks that were followed, the correlation is still on
    its way, and what the slope will change by on the rest of it does not show yet: it is then taken to be known to half of itself."""
    found = rate([float(np.linalg.norm(tangent)) for _, tangent in pair])
    if not found.error < math.inf or not found.value or abs(math.log(found.value)) > 2 / len(pair):
        return found
    return Estimate(found.value, max(found.error, found.value * abs(math.log(found.value)) / 2))


def _grows(own: Kernels) -> Estimate | None:
    """The power of the depth with which the variance grows, inf for a faster growth; None where it goes to a limit, nan where neither shows.
    What grows in so many blocks may still come to an end: `_stays_large` asks for more."""
    q = _sizes(own)
    if not np.isfinite(q).all() or q[-1] > LARGEST:
        return Estimate(math.inf, 0.0)
    if limit(q).error <= SETTLED * q.max(initial=0.0):
        return None
    faster, slower = rate(q), power(q)
    if faster.value - max(faster.error, CLOSE) > 1:
        return Estimate(math.inf, 0.0)
    if not slower.value - slower.error > 0:
        return Estimate(math.nan, math.inf)
    doubled = math.log2(q[-1] / q[len(q) // 2 - 1])
    return Estimate(slower.value, max(slower.error, abs(slower.value - doubled)))


def _stays_large(far: Kernels) -> bool:
    """Does the variance grow from a state that is `FAR` times as large, too? If it shrinks, there is a fixed point between."""
    q = _sizes(far)
    return bool(not np.isfinite(q).all() or q[-1] > q[0])


def _phase_of(own: Kernels, other: Kernels, pair: Kernels, growth: Estimate | None, relative: float = 0.0) -> Phase:
    """The phase that the kernels of networks of 1, 2, .. blocks show: of the first input with itself, of the second, and of both. growth: of
    a variance without bound; None where it has one, nan where that is open. relative: the error of each kernel."""
    if growth is not None and not math.isnan(growth.value):
        return replace(DIVERGENT, errors={"power": growth.error}, power=growth.value)
    q, q_error = _entries([_diagonal(kernel) for kernel, _ in own])
    c, c_error = _entries([_correlation(*(k[i][0] for k in (own, other, pair))) for i in range(len(own))])
    found = _chi_of(own)
    chi = Estimate(found.value, found.error + relative * found.value)
    variance = Estimate(math.nan, math.inf) if relative else _approach(_sizes(own))
    in_q, in_c, in_gradient = (scale(slope) for slope in (variance, _slope_of(pair), chi))
    errors = {
        "q": q_error + relative * q, "c": c_error + relative, "chi": chi.error, "scale_q": in_q.error, "scale_c": in_c.error,
        "scale_gradient": in_gradient.error,
    }  # fmt: skip
    name = "undecided" if growth is not None else name_of(chi)
    fixed = np.maximum(q, 0.0)[()], np.clip(c, -1, 1)[()]
    return Phase(*fixed, chi.value, name, in_q.value, in_c.value, in_gradient.value, errors)


def name_of(chi: Estimate, close: float = CLOSE) -> str:
    """The phase of a chi with an error; close: an error up to which "critical" can be said."""
    if abs(chi.value - 1) > max(CRITICAL, chi.error):
        return "ordered" if chi.value < 1 else "chaotic"
    return "critical" if chi.error < close else "undecided"


def scale(slope: Estimate) -> Estimate:
    """1 / |log slope|, and infinity where the slope may be 1."""
    if slope.value == 0:
        return Estimate(0.0, 0.0)
    if not slope.error < math.inf:
        return Estimate(math.nan, math.inf)
    log, error = abs(math.log(slope.value)), slope.error / slope.value
    return Estimate(math.inf, math.inf) if log <= max(CRITICAL, error) else Estimate(1 / log, error / log**2)


def _approach(q: np.ndarray) -> Estimate:
    """The factor by which what is left to the limit shrinks, up to where rounding is left."""
    steps = np.abs(np.diff(q))
    ended = np.flatnonzero(steps <= NOISE * q.max(initial=0.0))
    return rate(steps[: ended[0]] if len(ended) else steps)


def _sizes(own: Kernels) -> np.ndarray:
    return np.array([float(np.sum(_diagonal(kernel))) for kernel, _ in own])


def _diagonal(kernel: np.ndarray) -> np.ndarray:
    shape = kernel.shape[: kernel.ndim // 2]
    return np.diagonal(kernel.reshape(math.prod(shape), -1)).reshape(shape)


def _correlation(own: np.ndarray, other: np.ndarray, pair: np.ndarray) -> np.ndarray:
    size = np.sqrt(_diagonal(own) * _diagonal(other))
    return np.where(size > 0, _diagonal(pair) / np.where(size > 0, size, 1.0), 1.0)


def _entries(terms: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """The limits of arrays, entry by entry, and their errors; numbers where they have no axes."""
    rows = np.array(terms)
    found = [limit(column) for column in rows.reshape(len(rows), -1).T]
    values, errors = (np.array([e[k] for e in found]).reshape(rows.shape[1:])[()] for k in (0, 1))
    return values, errors
