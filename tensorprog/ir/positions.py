"""Linear maps of positions: the array operations that move, select and sum positions but never mix coordinates.

One row per operation: how it runs on an array, the shape it makes, what it does to each axis, and whether every
entry of its result is one entry of its argument (or zero). The covariance engine needs no more than that: it applies
the operation itself to the covariance, over one side's axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["POSITIONS", "Position", "PositionRow", "plain", "position"]


@dataclass(frozen=True)
class Position:
    """An operation of the table below with its parameters, such as `Position("rev", (("axes", (0,)),))`."""

    name: str
    params: tuple[tuple[str, Any], ...] = ()

    @property
    def row(self) -> PositionRow:
        return POSITIONS[self.name]

    @property
    def kw(self) -> dict[str, Any]:
        return dict(self.params)

    def __call__(self, x: jax.Array, *aux: jax.Array) -> jax.Array:
        return self.row.run(x, *aux, **self.kw)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        return _shape(self, shapes)

    def same_axis(self, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """Per axis of the result: the axis of the argument that it is, untouched, or None if the map acts on it."""
        return self.row.same_axis(shape, **self.kw)

    @property
    def selects(self) -> bool:
        return self.row.selects

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.params)})"


def position(name: str, **params: Any) -> Position:
    """Make a `Position`, refusing a name that is not in the table."""
    if name not in POSITIONS:
        raise KeyError(f"no position map named {name!r}: one of {', '.join(POSITIONS)}")
    return Position(name, tuple((k, plain(v)) for k, v in sorted(params.items())))


def plain(value: Any) -> Any:
    """A parameter of an operation in Python's own types, comparable by value: one NaN, no NumPy numbers, tuples for
    lists."""
    if type(value) in (tuple, list):
        return tuple(map(plain, value))
    value = value.item() if isinstance(value, np.generic) else value
    return math.nan if isinstance(value, float) and math.isnan(value) else value


@lru_cache(maxsize=4096)
def _shape(op: Position, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    indices = "gather" in (op.name, op.kw.get("of"))
    args = [jax.ShapeDtypeStruct(shapes[0], jnp.float32)]
    args += [jax.ShapeDtypeStruct(s, jnp.int32 if indices else jnp.float32) for s in shapes[1:]]
    return tuple(jax.eval_shape(op, *args).shape)


@dataclass(frozen=True)
class PositionRow:
    """What the table knows of one operation."""

    run: Callable[..., jax.Array]
    same_axis: Callable[..., tuple[int | None, ...]]
    selects: bool
    fills: bool = False  # some entries of the result may be zeros that come from no entry of the argument


def _axiswise(touched: Callable[..., Sequence[int]]) -> Callable[..., tuple[int | None, ...]]:
    """For operations that keep the number and order of axes and act on some of them."""

    def same(shape: tuple[int, ...], **kw: Any) -> tuple[int | None, ...]:
        acts = set(touched(shape, **kw))
        return tuple(None if i in acts else i for i in range(len(shape)))

    return same


def _reshape_same(shape: tuple[int, ...], *, to: tuple[int, ...]) -> tuple[int | None, ...]:
    """An axis survives a reshape when what stands before it, and its own size, are the same on both sides."""
    before: dict[int, tuple[int | None, int | None]] = {}
    product = 1
    for i, size in enumerate(shape):
        if size > 1:
            before[product] = (i, size)
        product *= size
    same: list[int | None] = []
    product = 1
    for size in to:
        place, found = before.get(product, (None, None))
        same.append(place if size > 1 and found == size else None)
        product *= size
    return tuple(same)


def _transpose_same(shape: tuple[int, ...], *, permutation: tuple[int, ...]) -> tuple[int | None, ...]:
    return permutation


def _broadcast_same(shape: tuple[int, ...], *, to: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int | None, ...]:
    source = {out: i for i, out in enumerate(axes) if shape[i] == to[out]}
    return tuple(source.get(i) for i in range(len(to)))


def _sum_same(shape: tuple[int, ...], *, axes: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(i for i in range(len(shape)) if i not in axes)


def _dot_same(
    shape: tuple[int, ...], *, contract: tuple[tuple[int, ...], tuple[int, ...]], batch: tuple[tuple[int, ...], tuple[int, ...]],
    ndim: int,
) -> tuple[int | None, ...]:  # fmt: skip
    free = [i for i in range(len(shape)) if i not in contract[0] and i not in batch[0]]
    extra = ndim - len(contract[1]) - len(batch[1])
    return (*(None for _ in batch[0]), *free, *(None for _ in range(extra)))


def _pad(x: jax.Array, *, config: tuple[tuple[int, int, int], ...]) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _slice(x: jax.Array, *, start: tuple[int, ...], stop: tuple[int, ...], stride: tuple[int, ...]) -> jax.Array:
    return lax.slice(x, start, stop, stride)


def _gather(x: jax.Array, indices: jax.Array, *, rank: int, slice_sizes: tuple[int, ...], mode: str, fill_value: Any,
            **dims: Any) -> jax.Array:  # fmt: skip
    numbers = lax.GatherDimensionNumbers(**dims)
    how = lax.GatherScatterMode[mode]
    return lax.gather(x, indices.astype(int), numbers, slice_sizes, mode=how, fill_value=fill_value)


def _gather_same(shape: tuple[int, ...], *, slice_sizes: tuple[int, ...], offset_dims: tuple[int, ...],
                 collapsed_slice_dims: tuple[int, ...], operand_batching_dims: tuple[int, ...], rank: int,
                 **_: Any) -> tuple[int | None, ...]:  # fmt: skip
    kept = [i for i in range(len(shape)) if i not in collapsed_slice_dims and i not in operand_batching_dims]
    whole = {out: i for out, i in zip(offset_dims, kept, strict=True) if slice_sizes[i] == shape[i]}
    return tuple(whole.get(i) for i in range(rank))


def _window_sum(x: jax.Array, *, window: tuple[int, ...], strides: tuple[int, ...], padding: tuple[tuple[int, int], ...],
                base_dilation: tuple[int, ...], window_dilation: tuple[int, ...]) -> jax.Array:  # fmt: skip
    return lax.reduce_window(
        x, np.zeros((), x.dtype), lax.add, window, strides, padding, base_dilation, window_dilation
    )


def _window_touched(shape: tuple[int, ...], *, window: tuple[int, ...], strides: tuple[int, ...],
                    padding: tuple[tuple[int, int], ...], **_: Any) -> list[int]:  # fmt: skip
    return [i for i in range(len(shape)) if window[i] != 1 or strides[i] != 1 or padding[i] != (0, 0)]


def patch_starts(
    size: int, *, window: int, stride: int, padding: tuple[int, int], dilation: int, base_dilation: int
) -> int:
    """How many windows fit along one axis."""
    dilated = (size - 1) * base_dilation + 1 if size else 0
    return max(0, (dilated + padding[0] + padding[1] - (window - 1) * dilation - 1) // stride + 1)


def _patches(x: jax.Array, *, axes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...],
             padding: tuple[tuple[int, int], ...], dilation: tuple[int, ...], base_dilation: tuple[int, ...]) -> jax.Array:  # fmt: skip
    """Every window of `x` as new trailing axes, one per windowed axis."""
    for a, k, s, p, d, b in zip(axes, window, strides, padding, dilation, base_dilation, strict=True):
        count = patch_starts(x.shape[a], window=k, stride=s, padding=p, dilation=d, base_dilation=b)
        config = [(0, 0, 0)] * x.ndim
        config[a] = (*p, b - 1)
        padded = lax.pad(x, jnp.zeros((), x.dtype), config)
        shifts = [lax.slice_in_dim(padded, o * d, o * d + (count - 1) * s + 1, s, axis=a) for o in range(k)]
        x = jnp.stack(shifts, axis=-1)
    return x


def _patches_same(shape: tuple[int, ...], *, axes: tuple[int, ...], **_: Any) -> tuple[int | None, ...]:
    return (*(None if i in axes else i for i in range(len(shape))), *(None for _ in axes))


def _windows(x: jax.Array, *, axes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...],
             padding: tuple[tuple[int, int], ...], dilation: tuple[int, ...]) -> jax.Array:  # fmt: skip
    """Every window of `x` as new trailing axes, one per windowed axis; a place outside repeats the nearest one inside.

    Raises ValueError for a window that lies outside altogether.
    """
    for a, k, s, p, d in zip(axes, window, strides, padding, dilation, strict=True):
        x = jnp.moveaxis(jnp.take(x, _inside(x.shape[a], k, s, p, d), axis=a), a + 1, -1)
    return x


def _inside(size: int, window: int, stride: int, padding: tuple[int, int], dilation: int) -> np.ndarray:
    """The places of each window along one axis, (windows, offsets)."""
    count = patch_starts(size, window=window, stride=stride, padding=padding, dilation=dilation, base_dilation=1)
    places = np.arange(count)[:, None] * stride - padding[0] + np.arange(window) * dilation
    if count and not np.all(np.any((places >= 0) & (places < size), axis=1)):
        raise ValueError(f"a window of {window} places lies in the padding {padding} altogether")
    low = np.min(np.where(places >= 0, places, size), axis=1, keepdims=True)
    high = np.max(np.where(places < size, places, -1), axis=1, keepdims=True)
    return np.clip(places, low, high)


def _cumsum(x: jax.Array, *, axis: int, reverse: bool) -> jax.Array:
    return lax.cumsum(x, axis, reverse)


def _dot(x: jax.Array, matrix: jax.Array, *, contract: Any, batch: Any, ndim: int) -> jax.Array:
    return lax.dot_general(x, matrix, (contract, batch))


def _transposed(y: jax.Array, *aux: jax.Array, of: str, kw: Any, shape: tuple[int, ...], lead: int) -> jax.Array:
    """The transpose of another map, from the shape of its results to that of its arguments, after `lead` more axes."""
    forward = lambda x: Position(of, kw)(x, *aux)
    back = lambda one: jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, one.dtype))(one)[0]
    for _ in range(lead):
        back = jax.vmap(back)
    return back(y)


def _transposed_same(
    made: tuple[int, ...], *, of: str, kw: Any, shape: tuple[int, ...], lead: int
) -> tuple[int | None, ...]:
    """An axis that the map carries along is carried back; one that it carries to several places is not."""
    source = Position(of, kw).same_axis(shape)
    found = ([j for j, i in enumerate(source) if i == axis] for axis in range(len(shape)))
    return (*range(lead), *(lead + places[0] if len(places) == 1 else None for places in found))


def _behind(x: jax.Array, *aux: jax.Array, of: str, kw: Any, shape: tuple[int, ...], lead: int) -> jax.Array:
    """Another map, after `lead` more axes."""
    one = lambda x: Position(of, kw)(x, *aux)
    for _ in range(lead):
        one = jax.vmap(one)
    return one(x)


def _behind_same(
    given: tuple[int, ...], *, of: str, kw: Any, shape: tuple[int, ...], lead: int
) -> tuple[int | None, ...]:
    return (*range(lead), *(None if i is None else lead + i for i in Position(of, kw).same_axis(shape)))


POSITIONS: dict[str, PositionRow] = {
    "reshape": PositionRow(lambda x, *, to: lax.reshape(x, to), _reshape_same, selects=True),
    "transpose": PositionRow(lambda x, *, permutation: lax.transpose(x, permutation), _transpose_same, selects=True),
    "broadcast": PositionRow(
        lambda x, *, to, axes: lax.broadcast_in_dim(x, to, axes), _broadcast_same, selects=True
    ),
    "slice": PositionRow(
        _slice,
        _axiswise(lambda shape, *, start, stop, stride: [
            i for i, size in enumerate(shape) if (start[i], stop[i], stride[i]) != (0, size, 1)
        ]),
        selects=True,
    ),
    "pad": PositionRow(
        _pad,
        _axiswise(lambda shape, *, config: [i for i, c in enumerate(config) if c != (0, 0, 0)]),
        selects=True,
        fills=True,
    ),
    "rev": PositionRow(lambda x, *, axes: lax.rev(x, axes), _axiswise(lambda shape, *, axes: axes), selects=True),
    "gather": PositionRow(_gather, _gather_same, selects=True, fills=True),
    "patches": PositionRow(_patches, _patches_same, selects=True, fills=True),
    "windows": PositionRow(_windows, _patches_same, selects=True),
    "sum": PositionRow(lambda x, *, axes: jnp.sum(x, axes), _sum_same, selects=False),
    "window_sum": PositionRow(_window_sum, _axiswise(_window_touched), selects=False),
    "cumsum": PositionRow(_cumsum, _axiswise(lambda shape, *, axis, reverse: [axis]), selects=False),
    "dot": PositionRow(_dot, _dot_same, selects=False),
    "transposed": PositionRow(_transposed, _transposed_same, selects=False),
    "behind": PositionRow(_behind, _behind_same, selects=False),
}  # fmt: skip
