"""The state to which the layers of a network lead, and the slopes of their map there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.depth import LARGEST
from tensorprog.apps.unrolled import Unrolled
from tensorprog.kernel.graph import Sampled

__all__ = ["Settled"]

TINY = 1e-10  # of what it was, a state that has decayed
STEPS = 3000  # of plain iteration, which stays among covariances
UNSETTLED = 1e-9  # a change per block, of the state, that is left after all these
WHOLE = 200  # entries up to which all eigenvalues are computed


class Settled:
    """A state to which the blocks lead, and the slopes of their map there. Tangent kernels are left out of it: where chi > 1 they grow."""

    def __init__(self, run: Unrolled, leaves1: Any, leaves2: Any, values: Any):
        self._run = run
        state, self._known = run.begin(leaves1, leaves2, values)
        # after some more blocks what they read of the block before is what they read themselves
        self._count = run.found.blocks + len(run.found.given[0])
        for k in range(self._count):
            state, _ = run.advance(state, self._known, k)
        self._shapes = [np.shape(a) for a in state]
        begun = self._size(state)
        state, _ = run.repeat(state, self._known, STEPS, LARGEST, TINY)
        kept = [np.asarray(a) for a, moved in zip(state, run.tangent, strict=True) if not moved]
        self._zero = np.zeros(sum(math.prod(s) for s, moved in zip(self._shapes, run.tangent, strict=True) if moved))
        self.at, self.gap, self.diverges = _flat(kept), 0.0, False
        if self._size(state) > TINY * begun:
            self.at, self.gap = _settle(lambda v: self._step(v, self._zero)[0], self.at)
            size = np.abs(self.at).max()
            grows = self.gap > UNSETTLED * size and np.abs(self._step(self.at, self._zero)[0]).max() > size
            self.diverges = bool(not size < LARGEST or grows)

    @property
    def slow(self) -> bool:
        """Does it still change, like a power of the depth, as at criticality?"""
        return self.gap > UNSETTLED * float(np.abs(self.at).max(initial=0.0))

    def _size(self, state: list[Any]) -> float:
        kernels = [np.abs(a).max() for a, moved in zip(state, self._run.tangent, strict=True) if not moved]
        return float(max(kernels, default=0.0))

    def _step(self, kernels: np.ndarray, tangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, self._last = self._run.advance(list(self._joined(kernels, tangents)), self._known, self._count)
        parts: tuple[list[Any], list[Any]] = ([], [])
        for array, moved in zip(state, self._run.tangent, strict=True):
            parts[moved].append(array)
        return _flat(parts[0]), _flat(parts[1])

    def _joined(self, kernels: np.ndarray, tangents: np.ndarray) -> Iterator[jax.Array]:
        """The entries of the state, from the two vectors."""
        at = [0, 0]
        for shape, moved in zip(self._shapes, self._run.tangent, strict=True):
            size = math.prod(shape)
            yield jnp.asarray((kernels, tangents)[moved][at[moved] : at[moved] + size].reshape(shape))
            at[moved] += size

    def nngp(self) -> jax.Array:
        """The output's kernel there."""
        self._step(self.at, self._zero)
        return self._run.end(self._known, self._last)[0]

    def chi(self) -> float:
        """The spectral radius of the map of tangent kernels, which is the derivative of that of covariances."""
        if not len(self._zero):
            return 0.0
        own = self._step(self.at, self._zero)[1]
        linear = lambda v: self._step(self.at, v)[1] - own
        # an expectation over a field takes covariances alone: from one of them, a positive map leads to its largest eigenvalue
        fields = any(isinstance(q, Sampled) for q, _ in self._run.found.block)
        return _power(linear, np.ones(len(own))) if fields else _radius(linear, np.ones(len(own)))

    def slope(self) -> float:
        """The largest slope of the map of kernels, by differences along the state itself: what is a covariance stays one."""
        size = float(np.abs(self.at).max(initial=0.0))
        if not size:
            return 0.0
        step = 1e-4 * size

        def slope(v: np.ndarray) -> np.ndarray:
            up, down = (self._step(self.at + sign * step * v, self._zero)[0] for sign in (1, -1))
            return (up - down) / (2 * step)

        return _power(slope, self.at / size)


def _flat(arrays: list[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.asarray(a, float).ravel() for a in arrays)])


def _radius(linear: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> float:
    """The spectral radius of a linear map."""
    if len(start) > WHOLE:
        return _power(linear, start)
    matrix = np.stack([linear(row) for row in np.eye(len(start))], 1)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _power(linear: Callable[[np.ndarray], np.ndarray], v: np.ndarray) -> float:
    """The largest eigenvalue that repeating a map from v shows."""
    before = size = math.inf
    for _ in range(500):
        v = linear(v)
        size = float(np.abs(v).max())
        if size < 1e-300:
            return 0.0
        if abs(size - before) < 1e-11 * size:
            break
        before, v = size, v / size
    return size


def _settle(step: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
    """The limit of iteration from near it, sped up along the slowest direction (Irons and Tuck 1969), and the last change."""
    gap = math.inf
    for _ in range(STEPS // 30):
        one = step(x)
        two = step(one)
        first, second = one - x, two - one
        size, gap = float(np.abs(two).max(initial=0.0)), float(np.abs(second).max(initial=0.0))
        if not size < LARGEST or gap <= 1e-13 * size:
            return two, gap
        bend = second - first
        jump = two - second * float(second @ bend) / max(float(bend @ bend), 1e-300)
        closer = np.linalg.norm(second) < np.linalg.norm(first) and np.abs(jump - two).max() < 1e3 * gap
        x = jump if closer and np.abs(step(jump) - jump).max() < gap else two
    return x, gap
