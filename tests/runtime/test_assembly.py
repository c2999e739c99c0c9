"""Matrices out of tiles: every entry once, whatever the sizes; on the host and on an accelerator; with many threads; after an error."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import pieces, tiles
from tensorprog.runtime.assembly import Ahead, DeviceMatrices, HostMatrices, Pairs, Place, at_once
from tensorprog.runtime.memory import ALIGNED


def relu_net(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(jax.nn.relu(nn.dense(x, bias_var=0.1)))), features=1)


def positions(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.conv(x[:, None], 2)), features=1)[:, 0]


@functools.cache
def compiled(net: Callable[..., Any]) -> tuple[tp.Kernel, np.ndarray, np.ndarray, list[np.ndarray]]:
    """A kernel, inputs, and both matrices pair by pair: its code for tiles of one size serves all cases that cut them so."""
    x, y = (np.random.default_rng(k).standard_normal((k, 3)) for k in (11, 7))
    kernel = tp.compile(net, jnp.zeros(3))
    pair = jax.jit(lambda a, b: jnp.stack(kernel.functions.block([a], [b], {})))
    one = [[pair(a[None], b[None])[:, 0, 0] for b in y] for a in x]
    return kernel, x, y, list(np.moveaxis(np.array(one), 2, 0))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CACHED", 12)
    monkeypatch.setattr(tiles, "_LEAST", 1)
    monkeypatch.setattr(pieces, "cores", lambda: 3)


@pytest.mark.parametrize(
    ("net", "accelerator", "piece"),
    [
        *((relu_net, *how) for how in ((False, 1), (True, 4))),
        *(pytest.param(relu_net, *how, marks=pytest.mark.long) for how in ((False, 4), (True, 11))),
        *(pytest.param(positions, *how, marks=pytest.mark.long) for how in ((False, 4), (True, 4))),
        *(pytest.param(positions, *how, marks=pytest.mark.slow) for how in ((False, 1), (True, 11))),
    ],
)
def test_every_entry_is_in_its_place(
    net: Callable[..., Any], accelerator: bool, piece: int, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, x, y, one_by_one = compiled(net)
    monkeypatch.setattr("tensorprog.runtime.gram.Layers._inputs_at_once", lambda *args: piece)
    if accelerator:
        monkeypatch.setattr(pieces, "matrices", lambda s, d, like, partners, reuse: DeviceMatrices(s, d, partners))
        monkeypatch.setattr("tensorprog.runtime.gram.matrices", pieces.matrices)
        monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 64 * 12)
    for k, wanted in zip(kernel(x, y), one_by_one, strict=True):
        np.testing.assert_allclose(k, wanted, rtol=1e-13, atol=1e-13)
    for k, between in zip(kernel(x), kernel(x, x + 0), strict=True):
        np.testing.assert_allclose(k, between, rtol=1e-13, atol=1e-13)
        axes = (1, 0) if k.ndim == 2 else (1, 0, 3, 2)
        np.testing.assert_array_equal(k, np.transpose(k, axes))


def test_near_pairs_in_every_corner(small_tiles: None) -> None:
    """In float32, near pairs of all tiles are computed again, and each stands in both halves."""
    x = np.random.default_rng(0).standard_normal((13, 3)).astype(np.float32)
    x[[3, 12]] = x[[0, 1]] * np.float32(1 + 1e-4)
    x[7] = x[6]
    kernel = tp.compile(relu_net, jnp.zeros(3))
    exact = kernel(np.float64(x))
    for get in (None, "ntk", ("ntk", "nngp")):
        found = kernel(x, get=get)
        found = dict(
            zip(
                ("nngp", "ntk") if get is None else (get,) if get == "ntk" else get,
                [found] if get == "ntk" else found,
                strict=True,
            )
        )
        for name, k in found.items():
            np.testing.assert_allclose(k, getattr(exact, name), rtol=2e-6)
            np.testing.assert_array_equal(k, k.T)


def test_precision_is_that_of_the_inputs_in_every_thread(small_tiles: None) -> None:
    kernel, x = tp.compile(relu_net, jnp.zeros(3)), np.random.default_rng(0).standard_normal((20, 3))
    with jax.enable_x64(False):
        assert kernel(x).ntk.dtype == np.float32
    with jax.enable_x64(True):
        wide = kernel(x).ntk
        assert wide.dtype == np.float64
        np.testing.assert_allclose(wide, kernel.without("threads", "rows")(x).ntk, rtol=1e-13)


def test_results_are_jax_arrays_that_took_over_the_memory() -> None:
    made = HostMatrices([(5, 7), (5, 7, 2, 3)], np.float32, None, [(0, 0), (1, 1)])
    made.put(Place(slice(0, 5), slice(0, 7)), [np.ones((5, 7)), np.zeros((5, 7, 2, 3))], None)
    at = [array.ctypes.data for array in made.arrays]
    assert all(a % ALIGNED == 0 for a in at)
    assert [k.unsafe_buffer_pointer() for k in made.get()] == at


def test_single_entries() -> None:
    for made in (
        HostMatrices([(3, 3)], np.float32, None, [(0, 0)]),
        DeviceMatrices([(3, 3)], np.float32, [(0, 0)]),
    ):
        made.put(Place(slice(0, 3), slice(0, 3)), [jnp.zeros((3, 3), np.float32)], None)
        made.change(0, Pairs(np.array([0]), np.array([2])), np.array([5.0]), True)
        np.testing.assert_array_equal(made.get()[0], [[0, 0, 5], [0, 0, 0], [5, 0, 0]])


def test_the_other_half() -> None:
    """A tile, cut off at the edge, stands turned below the diagonal."""
    n, size = 48, 37
    whole = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    whole = np.triu(whole) + np.triu(whole, 1).T
    made = HostMatrices([(n, n)], np.float32, None, [(0, 0)])
    for rows, columns in [
        (slice(0, size), slice(0, size)), (slice(0, size), slice(size, n)), (slice(size, n), slice(size, n)),
    ]:  # fmt: skip
        part = [jnp.asarray(whole[rows, columns])]
        halves = made.halves(*part[0].shape)(part)
        made.put(Place(rows, columns), [np.asarray(k) for k in part], [np.asarray(k) for k in halves])
    np.testing.assert_array_equal(made.get()[0], whole)


def test_jobs_are_asked_for_shortly_before(request: pytest.FixtureRequest) -> None:
    asked: list[int] = []

    def jobs() -> Any:
        for k in range(50):
            asked.append(k)
            yield lambda k=k: lambda: k

    ended = at_once(jobs(), 2)
    next(ended)
    assert len(asked) < 10
    assert sorted([0, *ended])[-1] == 49 and len(asked) == 50


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_job_is_begun_before_the_last_is_ended(workers: int) -> None:
    begun: list[int] = []
    most = 0

    def job(k: int) -> Any:
        begun.append(k)

        def end() -> int:
            nonlocal most
            most = max(most, len(begun))
            begun.remove(k)
            return k

        return end

    assert sorted(at_once((lambda k=k: job(k) for k in range(50)), workers)) == list(range(50))
    assert 1 < most <= 2 * workers and not begun


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_ends_all(error: BaseException, late: bool) -> None:
    """While a job is begun, or is ended."""
    done: list[int] = []

    def job(k: int) -> int:
        if k == 3:
            raise error
        time.sleep(0.001)
        done.append(k)
        return k

    before = threading.active_count()
    with pytest.raises(type(error)):
        list(
            at_once((lambda k=k: (lambda: job(k)) if late else functools.partial(int, job(k)) for k in range(1000)), 2)
        )
    assert len(done) < 20 and threading.active_count() == before


def test_code_is_compiled_once_for_each_kind() -> None:
    traced: list[Any] = []

    def double(a: jax.Array, times: int) -> jax.Array:
        traced.append(a.shape)
        return a * times

    code = Ahead(double, ("times",))
    for x in (jnp.ones(3), jnp.ones(3), jnp.ones(4), jnp.ones(3, np.float32)):
        assert float(code(x, times=2)(x)[0]) == 2
    assert float(code(jnp.ones(3), times=5)(jnp.ones(3))[0]) == 5
    assert traced == [(3,), (4,), (3,), (3,)]


@pytest.mark.long
def test_positions_that_meet_themselves_keep_their_digits_in_float32() -> None:
    """On the diagonal of a pooled kernel every position meets itself, where a rounded cosine is 3e-4 of an angle off."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.conv(x, 3)
        for _ in range(6):
            h = h + nn.conv(jax.nn.relu(h), 3, weight_var=2.0)
        return nn.dense(jnp.mean(h, axis=0), features=1)

    kernel = tp.compile(net, jnp.zeros((8, 2)))
    x = np.random.default_rng(0).standard_normal((5, 8, 2))
    exact, narrow = kernel(x).ntk, kernel(np.float32(x)).ntk
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=1e-6 * np.max(np.abs(exact)))
    np.testing.assert_allclose(kernel.diag(np.float32(x)).ntk, np.diag(exact), rtol=1e-6)
