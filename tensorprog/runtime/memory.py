"""Memory of results, used again: clearing fresh pages takes the system as long as the arithmetic of a short kernel.

A result is NumPy's memory that JAX takes over as it is (`tensorprog.runtime.assembly`). It is owned by a `Lease`, which whatever sees
the memory keeps alive: NumPy's arrays and views by their base; JAX's arrays, what they export, and computations that still read
them by the array that JAX took over. When the last of them is gone, the lease is, and its memory waits for a result of its size.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
from typing import Any

import numpy as np

__all__ = ["ALIGNED", "KEPT_BYTES", "LARGE_PAGE", "Pool", "results"]

KEPT_BYTES = 256 * 2**20  # that wait, at most
ALIGNED = 64  # bytes, at which XLA wants its arrays to begin
LARGE_PAGE = 2**21  # bytes; memory that begins at another place has small pages at both ends; less is quickly had


class Lease:
    """The owner of an array, as long as anything sees it."""

    def __init__(self, memory: np.ndarray):
        self.__array_interface__ = memory.__array_interface__  # of which NumPy makes arrays whose base is this object


class Pool:
    """Memory that waits: of all results that are gone, as much as `most` bytes, the latest."""

    def __init__(self, most: int = KEPT_BYTES):
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[np.ndarray] = []

    @property
    def waiting(self) -> int:
        """How many bytes wait."""
        return sum(memory.nbytes for memory in tuple(self._waiting))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of any values that JAX can take over: of memory that waits for its size, or of fresh memory."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < LARGE_PAGE or size > self._most:
            return fresh(shape, dtype)
        memory = self._taken(size)
        if memory is None:
            memory = fresh((size,), np.uint8)
        lease = Lease(memory)
        weakref.finalize(lease, self._returned, memory).atexit = False
        return np.asarray(lease).view(dtype).reshape(shape)

    def clear(self) -> None:
        """Give what waits back to the system."""
        with self._lock:
            self._waiting.clear()

    def _taken(self, size: int) -> np.ndarray | None:
        with self._lock:
            for k in reversed(range(len(self._waiting))):
                if self._waiting[k].nbytes == size:
                    return self._waiting.pop(k)
        return None

    def _returned(self, memory: np.ndarray) -> None:
        """Runs in whatever thread drops the last reference, maybe in the middle of a method above: it waits for nothing, and keeps nothing
        where it would have to."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._waiting.append(memory)
            while self.waiting > self._most:
                self._waiting.pop(0)
        finally:
            self._lock.release()


def fresh(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Fresh memory that JAX can take over."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    to = LARGE_PAGE if size >= LARGE_PAGE else ALIGNED
    if size >= LARGE_PAGE:
        _keep_what_tiles_free()
    raw = np.empty(size + to, np.uint8)
    start = -raw.ctypes.data % to
    return raw[start : start + size].view(dtype).reshape(shape)


@functools.cache
def _keep_what_tiles_free() -> None:
    """Once: ask for memory and give it back. From then on glibc keeps what is freed of that size or less for whoever asks next, instead of
    returning it to the system (mallopt(3), M_MMAP_THRESHOLD, which goes up to 32 MB). Results that are freed would teach it so by the
    way; where their memory is used again, that of every tile would be cleared anew."""
    np.empty(31 * 2**20, np.uint8)


results = Pool()
