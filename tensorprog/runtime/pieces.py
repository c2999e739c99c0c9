"""A matrix in pieces and tiles: what makes a tile, where it belongs, which pairs are computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.runtime.assembly import (
    DeviceMatrices,
    HostMatrices,
    Job,
    Matrices,
    Pairs,
    Partner,
    Place,
    at_once,
    cores,
)
from tensorprog.runtime.kernel import Leaves
from tensorprog.runtime.tiles import ALONE, Tiling, pairs_at_once, tiling

__all__ = ["Code", "Piece", "Progress", "Work", "assemble", "matrices"]

Code = Callable[[int, int], tuple[list[jax.Array], jax.Array | None]]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
MANY = 2**20  # pairs to be computed again that are remembered, at most


@dataclass(frozen=True)
class Work:
    """A matrix about to be made.

    tile: (rows, columns) -> code for tiles of this size: (i, j), where a tile begins -> (kernels, which pairs are to be computed again, if
    any may be). exact: pairs -> those of their kernels that change, by name.
    """

    tile: Callable[[int, int], Code]
    exact: Callable[[Pairs], dict[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a matrix, which begins at i, j.

    entries: of the largest array of a pair. cached: 1 where tiles are to stay in a core's cache; more where they are passed over so few
    times that starting them costs as much; 0 for the largest that memory allows. work: begins to make it. short: does a pair take no longer
    than by a series?
    """

    i: int
    j: int
    n1: int
    n2: int
    symmetric: bool
    entries: int
    cached: int
    work: Callable[[], Work]
    short: bool = False

    @property
    def count(self) -> int:
        """How many pairs are to be computed."""
        return self.n1 * self.n2 // (2 if self.symmetric else 1)

    def tiling(self, itemsize: int, workers: int, host: bool) -> Tiling:
        pairs = pairs_at_once(self.count, self.entries, itemsize, workers, self.cached if host else 0)
        return tiling(self.n1, self.n2, pairs, symmetric=self.symmetric)


def matrices(
    shapes: Sequence[tuple[int, ...]], dtype: Any, like: Leaves, partners: Sequence[Partner], reuse: bool = True
) -> Matrices:
    """Matrices where these inputs are. partners, reuse: see `HostMatrices`."""
    devices = like[0].devices()
    device = next(iter(devices))
    if device.platform != "cpu":
        return DeviceMatrices(shapes, dtype, partners)
    return HostMatrices(shapes, dtype, device if len(devices) == 1 and like[0].committed else None, partners, reuse)


def assemble(
    made: Matrices, pieces: Sequence[Piece], get: tuple[str, ...], mirror: bool, threads: bool, progress: Progress
) -> list[jax.Array]:  # fmt: skip
    """The kernels named by `get`, put together. mirror: pieces and tiles are those on and above the diagonal. threads: on a CPU, as many
    tiles at once as there are cores, unless there is little to do."""
    little = all(piece.short for piece in pieces) and sum(piece.count for piece in pieces) < ALONE
    workers = cores() if made.on_host and threads and not little else 1
    tilings = [piece.tiling(made.itemsize, workers, made.on_host) for piece in pieces]
    total = sum(map(len, tilings))

    def jobs() -> Iterator[Job[_Again | None]]:
        for piece, tiles in zip(pieces, tilings, strict=True):
            work = piece.work()
            halves = made.halves(tiles.rows, tiles.columns) if mirror else None
            code = work.tile(tiles.rows, tiles.columns)
            for i, j in tiles:
                yield partial(_begin, made, piece, work, code, halves, tiles, i, j)

    again: list[_Again] = []
    for found in progress(at_once(jobs(), min(workers, total)), total):
        if found is not None:
            again.append(found)
        if sum(len(a.pairs.i) for a in again) > MANY:
            _mend(made, again, get, mirror)
            again = []
    _mend(made, again, get, mirror)
    return made.get()


class _Again(NamedTuple):
    """Pairs of a piece that are to be computed again."""

    piece: Piece
    work: Work
    pairs: Pairs


def _begin(
    made: Matrices, piece: Piece, work: Work, code: Code, halves: Callable[[Sequence[Any]], list[Any]] | None, tiles: Tiling, i: int, j: int
) -> Callable[[], _Again | None]:  # fmt: skip
    """Have the tile at i, j of the piece computed, and give what puts it in its place. All tiles have one size: those at the edges begin before
    their place."""
    start, at = min(i, piece.n1 - tiles.rows), min(j, piece.n2 - tiles.columns)
    kernels, near = code(start, at)
    turned = None if halves is None else halves(kernels)

    def end() -> _Again | None:
        parts: Sequence[Any] = kernels
        others = turned
        if made.on_host:
            parts, others = [np.asarray(k) for k in parts], None if others is None else [np.asarray(k) for k in others]
        rows, columns = slice(i, min(i + tiles.rows, piece.n1)), slice(j, min(j + tiles.columns, piece.n2))
        place = Place(
            slice(rows.start + piece.i, rows.stop + piece.i), slice(columns.start + piece.j, columns.stop + piece.j)
        )
        if (start, at) != (i, j):
            parts = [k[i - start :, j - at :] for k in parts]
            others = None if others is None else [k[j - at :, i - start :] for k in others]
        made.put(place, parts, others)
        if near is None or not (made.on_host or jnp.any(near)):  # what is not there is not fetched from an accelerator
            return None
        which = np.flatnonzero(np.asarray(near)[i - start :, j - at :])
        if not len(which):
            return None
        pairs = Pairs(i + which // (columns.stop - j), j + which % (columns.stop - j))
        if piece.symmetric and place.on_diagonal:
            above = pairs.i <= pairs.j
            pairs = Pairs(pairs.i[above], pairs.j[above])
        return _Again(piece, work, pairs)

    return end


def _mend(made: Matrices, again: list[_Again], get: tuple[str, ...], mirror: bool) -> None:
    """Compute pairs again and put them in their places."""
    for work in {id(a.work): a.work for a in again}.values():
        some = [a for a in again if a.work is work]
        pairs = Pairs(*(np.concatenate([getattr(a.pairs, k) for a in some]) for k in ("i", "j")))
        assert work.exact is not None
        values = work.exact(pairs)
        piece = some[0].piece
        for index, name in enumerate(get):
            if name in values:
                made.change(index, Pairs(pairs.i + piece.i, pairs.j + piece.j), values[name], mirror)
