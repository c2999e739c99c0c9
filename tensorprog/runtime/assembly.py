"""Whole matrices out of tiles, which all cores compute at once.

Four things set the speed of a large matrix on a CPU once its arithmetic is short, and all four are matters of tiles:

- Layers are many passes over the same arrays. Those of a tile stay in a core's cache from the first pass to the last.
- Compilers run the operations of a loop one after the other. Tiles know nothing of each other: each core takes the next.
- Who waits for a tile is woken late, and then puts it in its place while nothing is computed: the next is begun before.
- Fresh memory is handed out, and cleared, page by page. NumPy asks for large pages where the system has them, which are quicker
  to come by, and JAX takes over NumPy's memory as it is; that of results that are gone is used again (`tensorprog.runtime.memory`).

On an accelerator the result stays there, and there is one worker, with tiles as large as memory allows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_rules.collector import older_objects_aside
from ntk_rules.interpreted import interpreted
from tensorprog.runtime.memory import fresh, results

__all__ = [
    "SIMPLER",
    "Ahead",
    "DeviceMatrices",
    "HostMatrices",
    "Interpreted",
    "Job",
    "Matrices",
    "Pairs",
    "Place",
    "at_once",
    "cores",
    "turned",
    "upper",
]

T = TypeVar("T")
Job = Callable[[], Callable[[], T]]  # begins something, and gives what ends it
Partner = tuple[int, int]  # which matrix has the other half of one, and how many of its own output axes are of x'


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Of XLA's compilation: loops by its older generator of code, all in as many modules as there are cores, which takes less time to compile. Of
# the same values to rounding, and as fast for arrays of single inputs and for transposes; not for layers and series, whose loops it does not
# vectorise.
SIMPLER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": cores()}


class Place(NamedTuple):
    """Where a tile belongs: rows and columns, as slices of the whole matrix."""

    rows: slice
    columns: slice

    @property
    def on_diagonal(self) -> bool:
        """Does it cover the same rows as columns?"""
        return (self.rows.start, self.rows.stop) == (self.columns.start, self.columns.stop)


class Pairs(NamedTuple):
    """Entries of a matrix, by row and column."""

    i: np.ndarray
    j: np.ndarray


def at_once(jobs: Iterable[Job[T]], workers: int) -> Iterator[T]:
    """The results of the jobs as they end, by so many workers, the caller one of them; jobs are asked for only shortly before.

    A job is begun, and what that gives ends it. Each worker begins the next before it ends the last, so that JAX, which computes while nobody
    waits for it, has something to compute while a result is put in its place. The first error ends it all: jobs that wait are dropped, and
    those at work are waited for.
    """
    source: Iterator[Job[T]] | None = iter(jobs)
    ready: SimpleQueue[Job[T] | None] = SimpleQueue()
    ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    missing = 0

    def take() -> Job[T] | None:
        """The caller's next job, with some ready for the others; None, for each of them, after the last."""
        nonlocal source, missing
        while True:
            while source is not None and ready.qsize() < 2 * workers:
                job = next(source, None)
                if job is None:
                    source = None
                    _close(ready, workers)
                else:
                    ready.put(job)
                    missing += 1
            try:
                return ready.get_nowait()
            except Empty:  # the others have been quicker
                continue

    helpers = [Thread(target=_help, args=(ready, ended), daemon=True) for _ in range(workers - 1)]
    try:
        for helper in helpers:
            helper.start()
        for result in _in_turn(take):
            missing -= 1
            yield result
            while not ended.empty():
                missing -= 1
                yield _result(*ended.get())
        while missing:
            missing -= 1
            yield _result(*ended.get())
    finally:
        with suppress(Empty):
            while True:
                ready.get_nowait()
        _close(ready, workers)
        for helper in helpers:
            helper.join()


def _in_turn(take: Callable[[], Job[T] | None]) -> Iterator[T]:
    """The results of the jobs that are to be had, until there is none; each is begun before the last is ended."""
    begun: deque[Callable[[], T]] = deque()
    while (job := take()) is not None:
        begun.append(job())
        if len(begun) > 1:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def _help(ready: SimpleQueue[Any], ended: SimpleQueue[Any]) -> None:
    """What a thread does: jobs until there is none, or an error."""
    try:
        for result in _in_turn(ready.get):
            ended.put((result, None))
    except BaseException as error:
        ended.put((None, error))


def _result(result: T, error: BaseException | None) -> T:
    if error is not None:
        raise error
    return result


def _close(ready: SimpleQueue[Any], workers: int) -> None:
    for _ in range(workers):
        ready.put(None)


class Ahead:
    """A function compiled in the caller's thread, for threads that only run it.

    JAX's settings, such as 64 bits, belong to a thread. Code that is compiled already reads none. options: of XLA's compilation,
    for its speed alone: a version that does not know them compiles without.
    """

    def __init__(
        self, function: Callable[..., Any], static: Sequence[str] = (), options: Mapping[str, Any] | None = None
    ):
        self._jitted = jax.jit(function, static_argnames=tuple(static))
        self._options = dict(options or {})
        self._made: dict[Any, Callable[..., Any]] = {}
        self._begun: dict[Any, tuple[Future[Any], Any]] = {}

    def __call__(self, *args: Any, **static: Any) -> Callable[..., Any]:
        """The compiled function, for arguments like these and these static ones."""
        key = _kind(args, static, placed=True)
        if key not in self._made:
            with older_objects_aside():
                lowered = self._jitted.lower(*args, **static)
            self._made[key] = self._compiled(lowered)
        return self._made[key]

    def begun(self, *args: Any, **static: Any) -> tuple[Future[Any], Any]:
        """The same in a thread, while the caller compiles what reads its values; and of what shapes and dtypes they will be."""
        key = _kind(args, static, placed=True)
        if key not in self._begun:
            with older_objects_aside():
                traced = self._jitted.trace(*args, **static)
                lowered = traced.lower()
            thread = ThreadPoolExecutor(1)
            self._begun[key] = thread.submit(self._compiled, lowered), traced.out_info
            thread.shutdown(wait=False)
        return self._begun[key]

    def _compiled(self, lowered: jax.stages.Lowered) -> Callable[..., Any]:
        if self._options:
            with suppress(jax.errors.JaxRuntimeError):
                return lowered.compile(self._options)
        return lowered.compile()


class Interpreted:
    """A function for few numbers, which NumPy has computed before XLA has compiled it."""

    def __init__(self, function: Callable[..., Any], static: Sequence[str] = ()):
        self._jitted = jax.jit(function, static_argnames=tuple(static))
        self._made: dict[Any, tuple[Callable[..., list[Any]], Any]] = {}

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Its values, as NumPy's arrays; traced at the first call with arguments like these and these static ones."""
        key = _kind(args, static, placed=False)
        if key not in self._made:
            with older_objects_aside():
                traced = self._jitted.trace(*args, **static)
            self._made[key] = interpreted(traced.jaxpr), jax.tree.structure(traced.out_info)
        run, tree = self._made[key]
        return jax.tree.unflatten(tree, run(*jax.tree.leaves(args)))


def _kind(args: Any, static: dict[str, Any], placed: bool) -> Any:
    leaves, tree = jax.tree.flatten(args)
    kinds = tuple((a.shape, a.dtype, getattr(a, "sharding", None) if placed else None) for a in leaves)
    return tree, kinds, tuple(sorted(static.items())), jax.config.jax_enable_x64  # type: ignore[attr-defined]


def turned(block: Any, right: int) -> Any:
    """K[x, x'] as K[x', x]: both inputs change places, and the output axes of both, of which the last `right` are of x'."""
    left = block.ndim - 2 - right
    return block.transpose((1, 0, *range(2 + left, 2 + left + right), *range(2, 2 + left)))


_TURNED = Ahead(turned, ("right",), SIMPLER)


class Matrices:
    """Matrices in the making.

    Those of one set of inputs are symmetric: below the diagonal stands the other half of what is above, for block (u, v) in block (v, u).
    partners: for each matrix which has its other half, and how many of that one's output axes are of x'.
    """

    on_host: bool

    def __init__(self, arrays: list[Any], partners: Sequence[Partner]):
        self.arrays, self._partners = arrays, partners
        self.itemsize = max((a.dtype.itemsize for a in arrays), default=1)

    def halves(self, rows: int, columns: int) -> Callable[[Sequence[Any]], list[Any]]:
        """Code for the other halves of tiles of this size, K[x', x] from K[x, x'], compiled while the caller compiles theirs."""
        kinds = [jax.ShapeDtypeStruct((rows, columns, *a.shape[2:]), a.dtype) for a in self.arrays]
        codes = [_TURNED.begun(kinds[other], right=right)[0] for other, right in self._partners]
        return lambda parts: [
            code.result()(parts[other]) for code, (other, _) in zip(codes, self._partners, strict=True)
        ]

    def put(self, place: Place, parts: Sequence[Any], halves: Sequence[Any] | None) -> None:
        """Write a tile of each; of symmetric matrices the other halves too."""
        raise NotImplementedError

    def _upper(self, part: Any, k: int) -> np.ndarray:
        return upper(part.shape, k, self._partners[k][0])

    def _other_half(self, index: int, values: np.ndarray) -> np.ndarray:
        """Of single entries K[x, x'], which have no other partner than themselves, K[x', x]."""
        return turned(values[None], self._partners[index][1])[:, 0]

    def change(self, index: int, pairs: Pairs, values: np.ndarray, mirror: bool) -> None:
        """Write single entries of one of them."""
        raise NotImplementedError

    def get(self) -> list[jax.Array]:
        """The finished matrices."""
        raise NotImplementedError


class HostMatrices(Matrices):
    """In the memory of the host."""

    on_host = True

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtype: Any,
        device: Any,
        partners: Sequence[Partner],
        reuse: bool = True,
    ):
        """reuse: memory of results that are gone."""
        empty = results.empty if reuse else fresh
        super().__init__([empty(shape, dtype) for shape in shapes], partners)
        self._device = device

    def put(self, place: Place, parts: Sequence[Any], halves: Sequence[Any] | None) -> None:
        """Write a tile of each."""
        for k, whole in enumerate(self.arrays):
            if halves is None:
                whole[place.rows, place.columns] = parts[k]
            elif place.on_diagonal:
                whole[place.rows, place.columns] = np.where(self._upper(parts[k], k), parts[k], halves[k])
            else:
                whole[place.rows, place.columns] = parts[k]
                whole[place.columns, place.rows] = halves[k]

    def change(self, index: int, pairs: Pairs, values: np.ndarray, mirror: bool) -> None:
        """Write single entries of one of them."""
        self.arrays[index][pairs.i, pairs.j] = values
        if mirror:
            self.arrays[index][pairs.j, pairs.i] = self._other_half(index, values)

    def get(self) -> list[jax.Array]:
        """The finished matrices: JAX takes over their memory."""
        return jax.device_put(self.arrays, self._device, may_alias=True)


class DeviceMatrices(Matrices):
    """Where the tiles are, each matrix written in place."""

    on_host = False

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: Any, partners: Sequence[Partner]):
        super().__init__([jnp.zeros(shape, dtype) for shape in shapes], partners)

    def put(self, place: Place, parts: Sequence[Any], halves: Sequence[Any] | None) -> None:
        """Write a tile of each."""
        at = np.int32(place.rows.start), np.int32(place.columns.start)
        for k, part in enumerate(parts):
            if halves is not None and place.on_diagonal:
                part = jnp.where(self._upper(part, k), part, halves[k])
            elif halves is not None:
                self.arrays[k] = _written(self.arrays[k], halves[k], *at[::-1])
            self.arrays[k] = _written(self.arrays[k], part, *at)

    def change(self, index: int, pairs: Pairs, values: np.ndarray, mirror: bool) -> None:
        """Write single entries of one of them."""
        values = values.astype(self.arrays[index].dtype)
        whole = self.arrays[index].at[pairs.i, pairs.j].set(values)
        other = self._other_half(index, values) if mirror else None
        self.arrays[index] = whole if other is None else whole.at[pairs.j, pairs.i].set(other)

    def get(self) -> list[jax.Array]:
        """The finished matrices."""
        return self.arrays


@partial(jax.jit, donate_argnums=0)
def _written(whole: jax.Array, part: jax.Array, i: Any, j: Any) -> jax.Array:
    return lax.dynamic_update_slice(whole, part, (i, j, *[np.int32(0)] * (whole.ndim - 2)))


@lru_cache(maxsize=16)
def upper(shape: tuple[int, ...], own: int, other: int) -> np.ndarray:
    """What a square block of this shape, number `own`, keeps of itself where its other half stands in block `other`: what is above the
    diagonal; and of an input with itself half of its positions or, of two different blocks, the first block."""
    n, *axes = shape[1:]
    above, same = np.tri(n, dtype=bool, k=-1).T, np.eye(n, dtype=bool)
    if own != other or not axes:
        return (above | (same & (own <= other))).reshape(n, n, *[1] * len(axes))
    half = axes[: len(axes) // 2]
    place = np.arange(int(np.prod(half)))
    whole = above[..., None, None] | (same[..., None, None] & (place[:, None] <= place))
    return whole.reshape(n, n, *half, *half)
