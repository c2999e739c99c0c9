"""Near-duplicate inputs in float32: their NTK is computed again in float64.

A neural tangent kernel with kinked nonlinearities changes like the angle between two inputs where they nearly
coincide, and a rounded cosine knows an angle only to half its digits. Such pairs are few, so computing them
again costs little. Equal inputs have the kernel of an input with itself, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.runtime.assembly import Ahead, Pairs, at_once, cores
from tensorprog.runtime.kernel import Hypers, Leaves
from tensorprog.runtime.tiles import pairs_in_memory

__all__ = ["Refine"]

ANGLE = 1e-3  # 1 - cosine below which a pair is near; above, float32 keeps the NTK to 1e-5 at depth 20
ANGLE_OF_POSITIONS = 1e-4  # the same where a kernel is an average over positions, whose errors average as well
CHUNK = 1024


class Refine:
    """The NTK of chosen pairs in float64, by the kernel's function of pairs."""

    def __init__(self, rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]], entries: int):
        """rows: the kernels of the i-th with the i-th input. entries: of the largest array of a pair."""
        self._rows = Ahead(lambda x1, x2, hypers: rows(x1, x2, hypers)[1])
        self._entries = entries
        self._angle = ANGLE if entries == 1 else ANGLE_OF_POSITIONS

    def near(self, nngp: Any, own1: Any, own2: Any, xp: Any = jnp) -> Any:
        """Which pairs are near, by their nngp and that of each input with itself. xp: NumPy or its equal in JAX."""
        return nngp > (1 - self._angle) * xp.sqrt(own1)[:, None] * xp.sqrt(own2)[None, :]

    def mended(self, x1: Leaves, x2: Leaves, own: np.ndarray, hypers: Hypers, pairs: Pairs) -> np.ndarray:
        """The NTK of near pairs. own: that of each of the first inputs with itself."""
        found = own[pairs.i]
        unlike = np.flatnonzero(_unlike(x1, x2, pairs))
        if len(unlike):
            found[unlike] = self.exact(x1, x2, hypers, Pairs(pairs.i[unlike], pairs.j[unlike]))
        return found

    def exact(self, x1: Leaves, x2: Leaves, hypers: Hypers, pairs: Pairs) -> np.ndarray:
        """The NTK of the pairs, rounded to float32."""
        found = np.empty(len(pairs.i), np.float32)
        workers = cores()
        share = 2 ** math.ceil(math.log2(math.ceil(len(found) / workers)))  # few sizes are compiled
        size = min(CHUNK, pairs_in_memory(8 * self._entries * workers), share)
        with jax.enable_x64(True):
            wide = [[_widened(np.asarray(leaf)) for leaf in x] for x in (x1, x2)]
            values = {name: jnp.asarray(np.asarray(value), np.float64) for name, value in hypers.items()}

            def jobs() -> Iterator[Callable[[], tuple[int, np.ndarray]]]:
                for start in range(0, len(found), size):
                    chosen = np.minimum(np.arange(start, start + size), len(found) - 1)
                    inputs = [[jnp.asarray(leaf[k[chosen]]) for leaf in x] for x, k in zip(wide, pairs, strict=True)]
                    code = self._rows(*inputs, values)
                    yield partial(_at, start, code, inputs, values)

            for start, ntk in at_once(jobs(), workers):
                found[start : start + size] = ntk[: len(found) - start]
        return found


def _unlike(x1: Leaves, x2: Leaves, pairs: Pairs) -> np.ndarray:
    """Which pairs are of different inputs."""
    found = np.zeros(len(pairs.i), bool)
    for a, b in zip(x1, x2, strict=True):
        first, second = np.asarray(a), np.asarray(b)
        for start in range(0, len(found), CHUNK):
            some = slice(start, start + CHUNK)
            differs = first[pairs.i[some]] != second[pairs.j[some]]
            found[some] |= differs.reshape(len(differs), -1).any(1)
    return found


def _at(start: int, code: Callable[..., Any], inputs: list[Leaves], hypers: Hypers) -> tuple[int, np.ndarray]:
    return start, np.asarray(code(*inputs, hypers))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
