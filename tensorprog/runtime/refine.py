"""Near-duplicate inputs in float32: their NTK is computed again in float64.

A neural tangent kernel with kinked nonlinearities changes like the angle between two inputs where they nearly
coincide, and a rounded cosine knows an angle only to half its digits. Such pairs are few, so computing them
again costs little. Where positions of one input meet, an input with itself is one of them: each position meets itself.
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

    def __init__(
        self, rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]], entries: int, meets: bool
    ):
        """rows: the kernels of the i-th with the i-th input. entries: of the largest array of a pair. meets: do positions of one input
        meet, so that it is not exact with itself?"""
        self._rows = Ahead(lambda x1, x2, hypers: rows(x1, x2, hypers)[1])
        self._entries, self.meets = entries, meets
        self._angle = ANGLE if entries == 1 else ANGLE_OF_POSITIONS

    def near(self, nngp: Any, own1: Any, own2: Any, xp: Any = jnp) -> Any:
        """Which pairs are near, by their nngp and that of each input with itself. xp: NumPy or its equal in JAX."""
        return nngp > (1 - self._angle) * xp.sqrt(own1)[:, None] * xp.sqrt(own2)[None, :]

    def chosen(self, x1: Leaves, x2: Leaves, pairs: Pairs) -> Pairs:
        """Of near pairs those that are not exact as they are: equal inputs are, unless different positions of theirs nearly coincide."""
        if self.meets:
            return pairs
        keep = np.zeros(len(pairs.i), bool)
        for a, b in zip(x1, x2, strict=True):
            first, second = np.asarray(a), np.asarray(b)
            for start in range(0, len(keep), CHUNK):
                some = slice(start, start + CHUNK)
                unlike = first[pairs.i[some]] != second[pairs.j[some]]
                keep[some] |= unlike.reshape(len(unlike), -1).any(1)
        return Pairs(pairs.i[keep], pairs.j[keep])

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


def _at(start: int, code: Callable[..., Any], inputs: list[Leaves], hypers: Hypers) -> tuple[int, np.ndarray]:
    return start, np.asarray(code(*inputs, hypers))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
