"""A lowered kernel as something to call: whole matrices, in tiles, jitted, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tensorprog.errors import InputError
from tensorprog.kernel import KernelGraph
from tensorprog.lower import Lowered
from tensorprog.runtime.tiles import Tiling, tiling

__all__ = ["GET", "Gram", "KernelResult", "pair_bytes"]

GET = ("nngp", "ntk")


class KernelResult(NamedTuple):
    """The two kernels of one call, each of shape (N1, N2), followed by the output's own axes twice if it has any."""

    nngp: Any
    ntk: Any


def pair_bytes(graph: KernelGraph, itemsize: int) -> int:
    """The largest array that one pair of inputs needs."""
    sizes = [math.prod(getattr(q, "shape", ())) for q in graph.nodes if getattr(q, "cross", False)]
    return itemsize * max(sizes, default=1)


class Gram:
    """Whole kernel matrices out of the functions of a pair.

    All arrays carry a leading batch axis; hyperparameters are scalars. `get` chooses what is computed.
    """

    def __init__(self, lowered: Lowered, graph: KernelGraph):
        self.lowered, self.graph = lowered, graph

        @partial(jax.jit, static_argnames="get")
        def block(x1: list[jax.Array], x2: list[jax.Array], hypers: dict[str, jax.Array], get: tuple[str, ...]) -> list[jax.Array]:
            return self.block(x1, x2, hypers, get)

        @jax.jit
        def diagonal(x: list[jax.Array], hypers: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return lowered.diagonal(jax.vmap(lambda leaves: lowered.state(leaves, hypers))(x))

        self._block, self._diagonal = block, jax.jit(
            lambda x, hypers: jax.vmap(lambda leaves: lowered.diagonal(lowered.state(leaves, hypers)))(x)
        )

    def block(self, x1: list[jax.Array], x2: list[jax.Array], hypers: dict[str, jax.Array], get: Sequence[str]) -> list[jax.Array]:
        """The kernel of every pair at once, as a pure function of arrays."""
        states = [jax.vmap(lambda leaves: self.lowered.state(leaves, hypers))(x) for x in (x1, x2)]

        def pair(a: Any, b: Any) -> list[jax.Array]:
            found = self.lowered.pair(a, b)
            return [found[GET.index(name)] for name in get]

        return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(*states)

    def diagonal(self, x: list[jax.Array], hypers: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The kernel of every input with itself, shape (N, ..)."""
        return self._diagonal(x, hypers)

    def tiling(self, n1: int, n2: int, dtype: Any, *, symmetric: bool) -> Tiling:
        return tiling(n1, n2, pair_bytes(self.graph, np.dtype(dtype).itemsize), symmetric=symmetric)

    def traced(self, x1: list[jax.Array], x2: list[jax.Array] | None, hypers: dict[str, jax.Array], get: tuple[str, ...]) -> list[jax.Array]:
        """Inside jit, grad or vmap: rows in a loop where one block would be too large."""
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        tiles = self.tiling(n1, n2, x1[0].dtype, symmetric=False)
        if len(tiles) <= 1:
            return self.block(x1, other, hypers, get)
        rows = lambda leaves: [k[0] for k in self.block([leaf[None] for leaf in leaves], other, hypers, get)]  # noqa: E731
        return lax.map(rows, x1, batch_size=max(1, tiles.rows * tiles.columns // n2))

    def __call__(
        self, x1: list[jax.Array], x2: list[jax.Array] | None, hypers: dict[str, jax.Array], get: tuple[str, ...],
        progress: Callable[[Iterable[Any], int], Iterable[Any]],
    ) -> list[Any]:  # fmt: skip
        """The matrices named by `get`."""
        symmetric = x2 is None
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        extra = (*self.graph.shape, *self.graph.shape)
        dtype = jnp.result_type(*[x for x in x1 if jnp.issubdtype(x.dtype, jnp.floating)] or [float])
        if n1 == 0 or n2 == 0:
            return [jnp.zeros((n1, n2, *extra), dtype) for _ in get]
        tiles = self.tiling(n1, n2, dtype, symmetric=symmetric)
        if len(tiles) == 1:
            return self._block(x1, other, hypers, get)
        out = [np.empty((n1, n2, *extra), dtype) for _ in get]
        for i, j in progress(tiles, len(tiles)):
            found = self._block(_rows(x1, i, tiles.rows), _rows(other, j, tiles.columns), hypers, get)
            for whole, part in zip(out, found, strict=True):
                _place(whole, np.asarray(part), i, j, symmetric and i != j)
        return [jnp.asarray(whole) for whole in out]


def _rows(x: list[jax.Array], start: int, count: int) -> list[jax.Array]:
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
        half = (part.ndim - 2) // 2
        axes = (1, 0, *range(2 + half, 2 + 2 * half), *range(2, 2 + half))
        whole[j : j + columns, i : i + rows] = part.transpose(axes)


def check_get(get: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for, checked."""
    names = GET if get is None else (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in GET:
            raise InputError(f"kernel: get is {get!r}, expected 'nngp', 'ntk', or a tuple of them")
    return names
