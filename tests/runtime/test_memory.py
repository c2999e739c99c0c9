"""Memory of results is used again when nothing sees it any more, and not before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import assembly
from tensorprog.runtime.assembly import HostMatrices
from tensorprog.runtime.memory import LARGE_PAGE, Pool

SHAPE = (512, 1024)
SIZE = 4 * 512 * 1024  # bytes, as many as a large page


def result(pool: Pool, value: float) -> tuple[jax.Array, int]:
    """A result full of one value, as JAX took it over, and where it lies."""
    array = pool.empty(SHAPE, np.float32)
    array[:] = value
    at = array.ctypes.data
    taken = jax.device_put(array, may_alias=True)
    assert taken.unsafe_buffer_pointer() == at
    return taken, at


def test_what_is_gone_comes_again() -> None:
    pool = Pool()
    first, at = result(pool, 1.0)
    assert pool.waiting == 0
    del first
    gc.collect()
    assert pool.waiting == SIZE
    assert pool.empty((16, 16), np.float32).ctypes.data != at  # another size
    assert result(pool, 2.0)[1] == at
    gc.collect()
    pool.clear()
    assert pool.waiting == 0


SEEN: dict[str, Callable[[jax.Array], Any]] = {
    "the array": lambda k: k,
    "a view of NumPy": lambda k: np.asarray(k)[3:5],
    "a turned view": lambda k: np.asarray(k).T,
    "a buffer": lambda k: memoryview(np.asarray(k)),
    "numpy by dlpack": np.from_dlpack,
    "jax by dlpack": jnp.from_dlpack,
    "a capsule": lambda k: k.__dlpack__(),
    "another shape": lambda k: k.reshape(-1),
    "a whole slice": lambda k: k[:],
    "put on the device again": jax.device_put,
    "what a function handed through": jax.jit(lambda k: k),
    "its shards": lambda k: k.addressable_shards[0].data,
    "a view, and the array deleted": lambda k: (np.asarray(k), k.delete())[0],
}


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What other tests have left is not looked through by every `gc.collect()` here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", SEEN)
def test_memory_that_is_seen_is_not_handed_out(name: str) -> None:
    """Whether JAX copies or shares: other results leave what is still seen as it is."""
    pool = Pool()
    first, _ = result(pool, 1.0)
    seen = SEEN[name](first)
    del first
    gc.collect()
    other = [result(pool, 2.0)[0] for _ in range(2)]
    values = np.from_dlpack(_Capsule(seen)) if name == "a capsule" else np.asarray(seen)
    assert values.size and np.all(values == 1)
    del seen, values, other
    gc.collect()
    assert pool.waiting >= 2 * SIZE  # and then it is free


class _Capsule:
    """What NumPy reads a capsule from."""

    def __init__(self, capsule: Any):
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_computations_that_still_run_read_what_they_were_given() -> None:
    pool = Pool()
    slow = jax.jit(lambda k: jax.lax.fori_loop(0, 20, lambda _, y: jnp.sin(y) + k, k))
    expected = np.asarray(slow(jnp.ones(SHAPE, np.float32)))
    for _ in range(4):
        found = slow(result(pool, 1.0)[0])  # dispatched; the argument is dropped at once
        other = result(pool, 7.0)[0]
        np.testing.assert_array_equal(found, expected)
        del found, other


def test_donated_results() -> None:
    """A donated buffer may live on in what was computed."""
    pool = Pool()
    more = jax.jit(lambda k: k + 1, donate_argnums=0)
    found = more(result(pool, 1.0)[0])
    gc.collect()
    other = [result(pool, 7.0)[0] for _ in range(2)]
    assert np.all(np.asarray(found) == 2)
    del found, other


def test_many_threads() -> None:
    pool, wrong = Pool(), []

    def work(number: int) -> None:
        for k in range(20):
            value = 1000.0 * number + k
            seen = np.asarray(result(pool, value)[0])
            if not np.all(seen == value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bound_holds() -> None:
    pool = Pool(2 * SIZE)
    some = [result(pool, k)[0] for k in range(4)]
    at = [k.unsafe_buffer_pointer() for k in some]
    for k in range(4):
        some[k] = None  # type: ignore[call-overload]
        gc.collect()
    assert pool.waiting == 2 * SIZE
    assert {result(pool, 0.0)[1]} <= set(at[2:])  # the latest are kept
    large = pool.empty((3, *SHAPE), np.float32)  # by itself more than the bound
    del large
    assert pool.waiting <= 2 * SIZE


def test_no_memory_where_a_lock_is_held() -> None:
    """The last reference may go while the same thread is inside the pool: nothing waits for itself."""
    pool = Pool()
    kept, _ = result(pool, 1.0)
    with pool._lock:
        del kept
        gc.collect()
    assert pool.waiting == 0


def relu_net(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(jax.nn.relu(nn.dense(x)))), features=1)


def test_kernels_in_memory_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is written, also where a tile failed before; and no call changes the result of another."""
    pool = Pool()
    monkeypatch.setattr(assembly, "results", pool)
    kernel = tp.compile(relu_net, jnp.zeros(3))
    x = np.random.default_rng(0).standard_normal((800, 3)).astype(np.float32)
    first = [np.array(k) for k in kernel.without("reuse")(x)]
    assert pool.waiting == 0
    poison = [pool.empty((800, 800), np.float32) for _ in range(2)]
    at = {array.ctypes.data for array in poison}
    for array in poison:
        array[:] = np.nan
    del poison, array
    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(HostMatrices, "put", _fails)
        with pytest.raises(RuntimeError, match="no more"):
            kernel(x)
    gc.collect()
    again = kernel(x)
    assert {k.unsafe_buffer_pointer() for k in again} <= at
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    held = again.ntk
    other = kernel(-3 * x)
    assert held.unsafe_buffer_pointer() not in {k.unsafe_buffer_pointer() for k in other}
    np.testing.assert_array_equal(first[1], held)


def _fails(*_: Any) -> None:
    raise RuntimeError("no more")


def test_memory_is_that_of_large_pages() -> None:
    assert SIZE >= LARGE_PAGE
    assert result(Pool(), 1.0)[1] % LARGE_PAGE == 0
