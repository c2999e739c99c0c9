"""Cutting a matrix into tiles: small enough for the processor's cache and for a bound of memory.

Whatever the number of inputs, the intermediate arrays of the tiles at work take at most about `TILE_BYTES`; the result itself is the
only array of size N1 x N2. A gram matrix of one set of inputs is symmetric: only the tiles on and above its diagonal
are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ALONE", "CACHED", "TILE_BYTES", "Tiling", "pairs_at_once", "pairs_in_memory", "tiling"]

TILE_BYTES = 256 * 2**20
CACHED = 2**18  # entries of an array that stays in a core's cache
_LEAST = 2**14  # entries of a tile that repays being started
ALONE = 2**16  # pairs that one worker has computed by a series before several have begun
_SHARES = 4  # tiles for each worker, at least, so that all end at about one time
_ROWS = 64  # enough of a tile, which is as wide as may be: rows are written in long pieces
_LIVE = 8  # arrays of a pair's size that are alive at once, at most, in the kernels measured


@dataclass(frozen=True)
class Tiling:
    """Tiles of `rows` x `columns` over an n1 x n2 matrix; the last ones reach over the edge."""

    n1: int
    n2: int
    rows: int
    columns: int
    symmetric: bool

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for i in range(0, self.n1, self.rows):
            for j in range(i if self.symmetric else 0, self.n2, self.columns):
                yield i, j

    def __len__(self) -> int:
        down, across = math.ceil(self.n1 / self.rows), math.ceil(self.n2 / self.columns)
        return down * (down + 1) // 2 if self.symmetric else down * across


def pairs_in_memory(one_bytes: int) -> int:
    """How many fit into `TILE_BYTES`, of what keeps arrays of `one_bytes` alive."""
    return max(1, TILE_BYTES // (_LIVE * max(1, one_bytes)))


def pairs_at_once(count: int, entries: int, itemsize: int, workers: int, cached: int) -> int:
    """How many pairs a tile has, of `count` that are to be computed, where a pair's arrays have `entries` entries. cached: how many
    times `CACHED` they may have; 0: as many as memory allows."""
    most = pairs_in_memory(entries * itemsize * workers)
    if not cached:
        return most
    share = count * entries // (_SHARES * workers)
    return max(1, min(most, min(cached * CACHED, max(_LEAST, share)) // entries))


def tiling(n1: int, n2: int, pairs: int, *, symmetric: bool) -> Tiling:
    """Balanced tiles of at most about `pairs` pairs."""
    side = max(1, math.isqrt(pairs))
    if symmetric:
        size = _balanced(n1, side)
        return Tiling(n1, n2, size, size, True)
    columns = _balanced(n2, max(side, pairs // max(1, min(n1, side, _ROWS))))
    rows = _balanced(n1, max(1, pairs // columns))
    return Tiling(n1, n2, rows, columns, False)


def _balanced(n: int, most: int) -> int:
    """A tile size of at most `most` that cuts n into equal parts, as nearly as can be."""
    return math.ceil(n / math.ceil(n / most)) if n else 1
