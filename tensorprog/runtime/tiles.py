"""Cutting a gram matrix into tiles that bound memory, and putting it together again.

Whatever the number of inputs, a tile's intermediate arrays take at most about `TILE_BYTES`; the result itself is the
only array of size N1 x N2. A gram matrix of one set of inputs is symmetric: only the tiles on and above its diagonal
are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["TILE_BYTES", "Tiling", "rows_at_once", "tiling"]

TILE_BYTES = 256 * 2**20
_LEAST = 256  # smaller tiles cost more to start than they save
_LIVE = 8  # arrays of a pair's size that are alive at once, at most, in the kernels measured


@dataclass(frozen=True)
class Tiling:
    """Tiles of `rows` x `columns` over an n1 x n2 matrix; the last ones overlap the edge and are cut."""

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


def rows_at_once(one_bytes: int, tile_bytes: int = TILE_BYTES) -> int:
    """How many fit into `tile_bytes`, of what keeps arrays of `one_bytes` alive."""
    return max(1, tile_bytes // (_LIVE * max(1, one_bytes)))


def tiling(n1: int, n2: int, pair_bytes: int, *, symmetric: bool, tile_bytes: int = TILE_BYTES) -> Tiling:
    """Balanced tiles whose live arrays, of `pair_bytes` for each pair, fit into `tile_bytes`."""
    pairs = rows_at_once(pair_bytes, tile_bytes)
    side = max(1, math.isqrt(pairs))
    if symmetric:  # small enough that few pairs below the diagonal are computed for nothing
        size = _balanced(n1, min(side, max(_LEAST, math.ceil(n1 / 8))))
        return Tiling(n1, n2, size, size, True)
    columns = _balanced(n2, max(side, pairs // max(1, min(n1, side))))
    rows = _balanced(n1, max(1, pairs // columns))
    return Tiling(n1, n2, rows, columns, False)


def _balanced(n: int, most: int) -> int:
    """A tile size of at most `most` that cuts n into equal parts, as nearly as can be."""
    return math.ceil(n / math.ceil(n / most)) if n else 1
