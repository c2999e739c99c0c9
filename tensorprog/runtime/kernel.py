"""A lowered kernel as something to call: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_rules.pieces import has_kinks
from tensorprog.errors import InputError
from tensorprog.kernel import KernelGraph
from tensorprog.kernel.fields import chunk_entries
from tensorprog.kernel.graph import Expect, Quantity, Sampled
from tensorprog.runtime.picture import heat_maps
from tensorprog.runtime.tiles import Tiling, rows_at_once, tiling

__all__ = ["GET", "Functions", "Gram", "KernelResult", "check_get", "float_dtype", "functions", "pair_entries"]

GET = ("nngp", "ntk")
Leaves = list[jax.Array]
Hypers = dict[str, jax.Array]


class KernelResult(NamedTuple):
    """The two kernels of one call, each of shape (N1, N2), followed by the output's own axes twice if it has any."""

    nngp: Any
    ntk: Any

    def _repr_html_(self) -> str | None:
        """For Jupyter: heat maps, where matplotlib is there to draw them."""
        return heat_maps(self._asdict())


def pair_entries(nodes: Iterable[Quantity]) -> int:
    """How many entries the largest array has that one pair of inputs needs."""
    sizes = [
        chunk_entries(q) if isinstance(q, Sampled) else math.prod(getattr(q, "shape", ()))
        for q in nodes
        if getattr(q, "cross", False)
    ]
    return max(sizes, default=1)


def float_dtype(x: Iterable[jax.Array]) -> Any:
    """The dtype of a kernel of these inputs: that of the real ones, JAX's default if there are none."""
    kinds = [leaf.dtype for leaf in x if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*kinds) if kinds else jnp.result_type(float)


@dataclass(frozen=True)
class Functions:
    """The two functions that whole matrices are made of, with a batch axis on every array: lowered here, or read
    from a file.

    block: (x1, x2, hypers) -> (nngp, ntk) of every pair. diagonal: (x, hypers) -> (nngp, ntk) of every input with
    itself.
    x1, x2, x are lists of the input's leaves. shape: the output's own axes. pair_entries: entries of the largest
    array of a pair.
    rows: (x1, x2, hypers) -> (nngp, ntk) of the i-th with the i-th input, where there is such a function. kinks: are there
    functions with kinks?
    """

    block: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]]
    diagonal: Callable[[Leaves, Hypers], tuple[jax.Array, jax.Array]]
    shape: tuple[int, ...]
    pair_entries: int
    rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]] | None = None
    kinks: bool = False


class OfPairs(Protocol):
    """What lowering makes: the kernel without batch axes (`tensorprog.lower.Lowered`)."""

    @property
    def state(self) -> Callable[..., Any]: ...
    @property
    def pair(self) -> Callable[..., Any]: ...
    @property
    def diagonal(self) -> Callable[..., Any]: ...


CACHED = 2**18  # entries of an array that stays in a processor's cache


def by_rows(pairs: Callable[[Any, Any], Any], first: Any, second: Any, entries: int) -> Any:
    """`pairs(first, second)`, some rows at a time where that keeps its arrays, of `entries` for each pair, in the cache.

    The layers of a kernel are many passes over the matrix: out of the cache, memory would set their speed.
    """
    n1, n2 = (jax.tree.leaves(x)[0].shape[0] for x in (first, second))
    sizes_known = isinstance(n1, int) and isinstance(n2, int)  # not while a function for any sizes is exported
    if not sizes_known or n1 * n2 * entries <= 2 * CACHED or n2 * entries > CACHED:
        return pairs(first, second)
    chunks = math.ceil(n1 / (CACHED // (n2 * entries)))
    rows = math.ceil(n1 / chunks)
    at = np.minimum(np.arange(math.ceil(n1 / rows) * rows), n1 - 1)  # the last row again, to fill the last chunk
    stacked = jax.tree.map(lambda a: (a if len(at) == n1 else a[at]).reshape(-1, rows, *a.shape[1:]), first)
    found = lax.map(lambda part: pairs(part, second), stacked)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n1], found)


def by_inputs(one: Callable[[Leaves], Any], x: Leaves, entries: int) -> Any:
    """`one` of every input, as many at a time as a tile's memory is good for, where each has arrays of `entries`."""
    count = x[0].shape[0]
    at_once = rows_at_once(entries * np.dtype(float_dtype(x)).itemsize)
    if not isinstance(count, int) or count <= at_once:  # unknown while a function for any sizes is exported
        return jax.vmap(one)(x)
    return lax.map(one, x, batch_size=at_once)


def live_flag(x: Leaves, off: Collection[str] = ()) -> jax.Array | None:
    """True, but only when it runs: what shields costly quantities from fusion on a CPU (`tensorprog.lower.emit`)."""
    if "branches" in off or jax.default_backend() != "cpu":
        return None
    some = lax.stop_gradient(x[0]).ravel()[0].astype(jnp.float32)
    return some == some


def functions(lowered: OfPairs, graph: KernelGraph, off: Collection[str] = ()) -> Functions:
    """Pairs into blocks: `jax.vmap` over both inputs. off: optimisations that are switched off."""

    def states(x: Leaves, hypers: Hypers, live: jax.Array | None) -> Any:
        return jax.vmap(lambda leaves: lowered.state(leaves, hypers, live))(x)

    def block(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, jax.Array]:
        n1, live = x1[0].shape[0], live_flag(x1, off)
        both = states([jnp.concatenate(pair) for pair in zip(x1, x2, strict=True)], hypers, live)  # one graph, not two
        first, second = (
            jax.tree.map(lambda a, part=part: a[part], both) for part in (slice(None, n1), slice(n1, None))
        )
        one = lambda a, b: lowered.pair(a, b, live)
        pairs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
        if "rows" in off:
            return pairs(first, second)
        return by_rows(pairs, first, second, pair_entries(graph.nodes))

    def diagonal(x: Leaves, hypers: Hypers) -> tuple[jax.Array, jax.Array]:
        live = live_flag(x, off)
        one = lambda leaves: lowered.diagonal(lowered.state(leaves, hypers, live))
        return by_inputs(one, x, pair_entries(graph.nodes))

    def rows(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, jax.Array]:
        live = live_flag(x1, off)
        return jax.vmap(lambda a, b: lowered.pair(a, b, live))(states(x1, hypers, live), states(x2, hypers, live))

    kinks = any(has_kinks(q.function) for q in graph.nodes if isinstance(q, Expect))
    return Functions(block, diagonal, graph.shape, pair_entries(graph.nodes), rows, kinks)


# (x1, x2 or None, hypers, get) -> whole matrices by another way than pair by pair, or None where it does not apply.
Shortcut = Callable[[Leaves, Leaves | None, Hypers, tuple[str, ...]], list[Any] | None]


class Gram:
    """Whole kernel matrices out of blocks.

    All arrays carry a leading batch axis; hyperparameters are scalars. `get` chooses what is computed. shortcut: asked first
    for whole matrices. symmetry: leave out the tiles below the diagonal of a gram matrix.
    """

    def __init__(self, made: Functions, shortcut: Shortcut | None = None, symmetry: bool = True):
        self.shape, self.pair_entries = made.shape, made.pair_entries
        self._shortcut, self._symmetry = shortcut, symmetry

        @partial(jax.jit, static_argnames="get")
        def block(x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
            found = made.block(x1, x2, hypers)
            return [found[GET.index(name)] for name in get]

        self._block: Callable[[Leaves, Leaves, Hypers, tuple[str, ...]], list[jax.Array]] = block
        self._diagonal = jax.jit(made.diagonal)
        self._refine = None if made.rows is None or made.shape or not made.kinks else Refine(made.rows)

    def diagonal(self, x: Leaves, hypers: Hypers) -> tuple[jax.Array, jax.Array]:
        """The kernel of every input with itself, shape (N, ..)."""
        if x[0].shape[0] == 0:
            empty = jnp.zeros((0, *self.shape, *self.shape), float_dtype(x))
            return empty, empty
        return self._diagonal(x, hypers)

    def tiling(self, n1: int, n2: int, dtype: Any, *, symmetric: bool) -> Tiling:
        """The tiles of an n1 x n2 matrix."""
        return tiling(n1, n2, self.pair_entries * np.dtype(dtype).itemsize, symmetric=symmetric)

    def traced(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
        """Inside jit, grad or vmap: rows in a loop where one block would be too large."""
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        if n1 == 0 or n2 == 0:
            return self._empty(n1, n2, float_dtype(x1), get)
        tiles = self.tiling(n1, n2, float_dtype(x1), symmetric=False)
        if len(tiles) <= 1:
            return self._block(x1, other, hypers, get)
        rows = min(n1, max(1, tiles.rows * tiles.columns // n2))
        whole = n1 // rows * rows
        stacked = [leaf[:whole].reshape(-1, rows, *leaf.shape[1:]) for leaf in x1]
        parts = lax.map(lambda leaves: self._block(leaves, other, hypers, get), stacked)
        found = [part.reshape(whole, *part.shape[2:]) for part in parts]
        if whole == n1:
            return found
        last = self._block([leaf[whole:] for leaf in x1], other, hypers, get)
        return [jnp.concatenate(pair) for pair in zip(found, last, strict=True)]

    def _empty(self, n1: int, n2: int, dtype: Any, get: tuple[str, ...]) -> list[jax.Array]:
        return [jnp.zeros((n1, n2, *self.shape, *self.shape), dtype) for _ in get]

    def __call__(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...],
        progress: Callable[[Iterable[Any], int], Iterable[Any]],
    ) -> list[Any]:  # fmt: skip
        """The matrices named by `get`."""
        symmetric = x2 is None and self._symmetry
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        extra, dtype = (*self.shape, *self.shape), float_dtype(x1)
        if n1 == 0 or n2 == 0:
            return self._empty(n1, n2, dtype, get)
        found = None if self._shortcut is None else self._shortcut(x1, x2, hypers, get)
        if found is not None:
            return found
        tiles = self.tiling(n1, n2, dtype, symmetric=symmetric)
        if len(tiles) == 1:
            return self._tile(x1, other, hypers, get, symmetric)
        out = [np.empty((n1, n2, *extra), dtype) for _ in get]
        for i, j in progress(tiles, len(tiles)):
            rows, columns = _rows(x1, i, tiles.rows), _rows(other, j, tiles.columns)
            found = self._tile(rows, columns, hypers, get, symmetric and i == j)
            for whole, part in zip(out, found, strict=True):
                _place(whole, np.asarray(part), i, j, symmetric and i != j)
        return [jnp.asarray(whole) for whole in out]

    def _tile(self, x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...], symmetric: bool) -> list[Any]:
        """One block; in float32 with the pairs that need more digits computed in float64. symmetric: of a gram matrix, on
        its diagonal."""
        found = self._refined(x1, x2, hypers, get, symmetric)
        return [mirrored(k) for k in found] if symmetric else found

    def _refined(self, x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...], symmetric: bool) -> list[Any]:
        refine = self._refine if "ntk" in get and float_dtype(x1) == np.float32 else None
        if refine is None:
            return self._block(x1, x2, hypers, get)
        nngp, ntk = self._block(x1, x2, hypers, GET)
        own = [jnp.diagonal(nngp)] * 2 if symmetric else [self._diagonal(x, hypers)[0] for x in (x1, x2)]
        ntk = refine(x1, x2, hypers, nngp, ntk, own, symmetric)
        return [(nngp, ntk)[GET.index(name)] for name in get]


class Refine:
    """Near-duplicate inputs in float32: their NTK is computed again in float64.

    A neural tangent kernel with kinked nonlinearities changes like the angle between two inputs where they nearly
    coincide, and a rounded cosine knows an angle only to half its digits. Such pairs are few, so computing them
    again costs little.
    """

    ANGLE = 1e-3  # 1 - cosine below which a pair is near; above, float32 keeps the NTK to 1e-5 at depth 20
    CHUNK = 1024

    def __init__(self, rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]]):
        self._rows = jax.jit(lambda x1, x2, hypers: rows(x1, x2, hypers)[1])
        self._near = jax.jit(lambda k, a, b: k > (1 - self.ANGLE) * jnp.sqrt(a)[:, None] * jnp.sqrt(b)[None, :])

    def __call__(
        self,
        x1: Leaves,
        x2: Leaves,
        hypers: Hypers,
        nngp: jax.Array,
        ntk: jax.Array,
        diagonals: list[jax.Array],
        symmetric: bool,
    ) -> Any:
        """`ntk` with the near pairs replaced."""
        near = self._near(nngp, *diagonals)
        i, j = np.nonzero(np.asarray(near))
        if symmetric:
            i, j = i[i < j], j[i < j]
        keep = np.zeros(len(i), bool)
        for a, b in zip(x1, x2, strict=True):
            first, second = np.asarray(a), np.asarray(b)
            for start in range(0, len(i), self.CHUNK):
                part = slice(start, start + self.CHUNK)
                different = (first[i[part]] != second[j[part]]).reshape(len(i[part]), -1)
                keep[part] |= different.any(1)
        i, j = i[keep], j[keep]
        if not len(i):
            return ntk
        out = np.array(ntk)
        with jax.enable_x64(True):
            wide = [[_widened(np.asarray(leaf)) for leaf in x] for x in (x1, x2)]
            values = {name: jnp.asarray(np.asarray(value), np.float64) for name, value in hypers.items()}
            for start in range(0, len(i), self.CHUNK):
                chosen = np.arange(start, start + self.CHUNK) % len(i)
                pairs = [[jnp.asarray(leaf[k[chosen]]) for leaf in x] for x, k in zip(wide, (i, j), strict=True)]
                exact = np.asarray(self._rows(*pairs, values), np.float32)
                out[i[chosen], j[chosen]] = exact
                if symmetric:
                    out[j[chosen], i[chosen]] = exact
        return jnp.asarray(out)


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


@jax.jit
def mirrored(block: jax.Array) -> jax.Array:
    """A block on the diagonal with what stands above it below it: sums in another order differ in the last digit."""
    n = block.shape[0]
    upper = np.arange(n)[:, None] <= np.arange(n)
    return jnp.where(upper.reshape(n, n, *[1] * (block.ndim - 2)), block, block.transpose(_turned(block.ndim)))


def _turned(ndim: int) -> tuple[int, ...]:
    """The axes of a block K[x, x'] as K[x', x]: both inputs, and the output axes of both, change places."""
    half = (ndim - 2) // 2
    return (1, 0, *range(2 + half, 2 + 2 * half), *range(2, 2 + half))


def _rows(x: Leaves, start: int, count: int) -> Leaves:
    """`count` rows from `start` on; past the end the last row is repeated, so that every tile has one shape."""
    n = x[0].shape[0]
    if start + count <= n:
        return [leaf[start : start + count] for leaf in x]
    return [jnp.take(leaf, jnp.minimum(jnp.arange(start, start + count), n - 1), axis=0) for leaf in x]


def _place(whole: np.ndarray, part: np.ndarray, i: int, j: int, mirror: bool) -> None:
    rows, columns = min(part.shape[0], whole.shape[0] - i), min(part.shape[1], whole.shape[1] - j)
    part = part[:rows, :columns]
    whole[i : i + rows, j : j + columns] = part
    if mirror:
        whole[j : j + columns, i : i + rows] = part.transpose(_turned(part.ndim))


def check_get(get: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for, checked."""
    names = GET if get is None else (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in GET:
            raise InputError(f"kernel: get is {get!r}, expected 'nngp', 'ntk', or a tuple of them")
    return names
