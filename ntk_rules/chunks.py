"""Costly elementwise functions on large arrays in bounded memory, under vmap as well.

A value by two-dimensional quadrature works on thousands of nodes per element. `elementwise` evaluates
such a function
on slices of the flattened, broadcast arguments, and turns the axes that vmap adds into more elements to
slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def broadcasting(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function`, which broadcasts its arguments, such that vmap gives it one more axis to broadcast along."""

    @jax.custom_batching.custom_vmap
    def call(*arrays: jax.Array) -> jax.Array:
        return function(*arrays)

    @call.def_vmap
    def batched_call(batch: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        rank = max(a.ndim - b for a, b in zip(arrays, batched, strict=True))
        spread = []
        for a, is_batched in zip(arrays, batched, strict=True):
            inner = a.shape[1:] if is_batched else a.shape
            lead = (batch,) if is_batched else (1,)
            spread.append(a.reshape(lead + (1,) * (rank - len(inner)) + inner))
        out = call(*spread)
        return jnp.broadcast_to(out, (batch, *out.shape[1:])), True

    return call


def elementwise(function: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    """`function` of equal one-dimensional arrays as a broadcasting function, `size` elements at a time: jitted, so that it is traced once for
    all slices of that size, and not again for every axis that vmap adds."""
    return broadcasting(in_slices(jax.jit(function), size))


def in_slices(function: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    """The same in JAX's own operations, which can be differentiated; every axis that vmap adds makes the slices larger."""

    def sliced(*arrays: jax.Array) -> jax.Array:
        shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
        flat = [jnp.broadcast_to(a, shape).reshape(-1) for a in arrays]
        count = math.prod(shape)
        if not isinstance(count, int):  # while a function for any sizes is exported
            return jax.lax.map(lambda row: function(*row), tuple(a.reshape(-1, 1) for a in flat)).reshape(shape)
        if count <= size:
            return function(*flat).reshape(shape)
        chunks = -(-count // size)
        padded = [jnp.pad(a, (0, chunks * size - count), mode="edge").reshape(chunks, size) for a in flat]
        return jax.lax.map(lambda rows: function(*rows), tuple(padded)).reshape(-1)[:count].reshape(shape)

    return sliced
