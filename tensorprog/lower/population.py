"""A population of neurons of the infinitely wide network, as arrays: `kernel.population` says what it is for.

The normals of one weight are made white: their mean is zero and their second moments are exactly those of the law. What is linear
in them is then free of sampling error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ntk_rules.sampling import SEED, SHIFTS, factor
from tensorprog.kernel.graph import Average, Drawn, Factored, Normals, Recorded
from tensorprog.lower.einsum import contract

__all__ = ["AllNormals", "average", "drawn", "factored", "further_normals", "recorded"]

LEAST_SPARE = 4  # neurons for each dimension, below which whitening would tie them to each other
MATMUL = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class AllNormals:
    """The normals of all laws; those of one shape are made together, which keeps the code short.

    shift: take a fraction of the neurons, others for each shift; the spread between them is the standard error.
    """

    def __init__(self, wanted: Iterable[Normals], dtype: jnp.dtype, shift: jax.Array | None):
        self._dtype, self._shift = dtype, shift
        self._streams: dict[tuple[int, ...], list[int]] = {}
        for q in wanted:
            self._streams.setdefault(q.shape, []).append(q.stream)
        self._made: dict[tuple[int, ...], jax.Array] = {}

    def __getitem__(self, q: Normals) -> jax.Array:
        streams = self._streams[q.shape]
        if q.shape not in self._made:
            shift = SHIFTS if self._shift is None else self._shift
            start = jnp.asarray(SEED * (SHIFTS + 1) + shift, jnp.uint32)  # two words of key, and then two of a counter
            keys = [jnp.stack([start, *(jnp.uint32(k) for k in (stream, 0, 0))]) for stream in streams]
            shape = (q.shape[0], _count(q.shape[1], self._shift))
            every = lax.optimization_barrier(jnp.stack(keys))  # or XLA works out all normals while it compiles
            self._made[q.shape] = lax.map(lambda key: _normals(key, shape, self._dtype), every)
        return self._made[q.shape][streams.index(q.stream)]


@partial(jax.jit, static_argnames=("shape", "dtype"))
def further_normals(stream: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """The normals of a law that is no part of the graph, of the number `stream`; one compilation for all of them."""
    key = jnp.stack(
        [jnp.asarray(SEED * (SHIFTS + 1) + SHIFTS, jnp.uint32), stream.astype(jnp.uint32), *jnp.zeros(2, jnp.uint32)]
    )
    return _normals(key, shape, dtype)


def _normals(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    rows, count = shape
    _, bits = lax.rng_bit_generator(key, shape, algorithm=lax.RandomAlgorithm.RNG_THREE_FRY)
    unit = (bits >> 8).astype(dtype) * 2.0**-23 + (2.0**-24 - 1)  # whole numbers, so the same in both precisions
    made = lax.erf_inv(unit) * 2.0**0.5
    if count < LEAST_SPARE * rows:
        return made
    made = made - made.mean(1, keepdims=True)
    lower = jnp.linalg.cholesky(MATMUL(made, made.T) / count)
    return lax.linalg.triangular_solve(lower, made, left_side=True, lower=True)


def _count(neurons: int, shift: jax.Array | None) -> int:
    return neurons if shift is None or neurons == 1 else neurons // SHIFTS


def recorded(q: Recorded, args: Sequence[jax.Array], shift: jax.Array | None) -> jax.Array:
    """The record with its new rows."""
    *before, x, at = args
    total, places, neurons = q.shape[0], q.shape[1], _count(q.shape[2], shift)
    several = x.shape[0] if q.spec.startswith(q.spec[-1]) else 1
    new = contract(q.spec, [x], 1.0, (*q.places, several), x.dtype)
    return _recorded(new, at, before[0] if before else None, (total, places, neurons))


@partial(jax.jit, static_argnums=3)
def _recorded(new: jax.Array, at: jax.Array, before: jax.Array | None, shape: tuple[int, int, int]) -> jax.Array:
    total, places, neurons = shape
    new = new.reshape(-1, places, new.shape[-1])
    new = jnp.broadcast_to(new, (new.shape[0], places, neurons))
    rows = jnp.einsum("qk,qsz->ksz", _places(at, new.shape[0], total, new.dtype), new, precision=lax.Precision.HIGHEST)
    return rows if before is None else before + rows


def factored(q: Factored, args: Sequence[jax.Array]) -> jax.Array:
    """The factor with the rows that the new rows of the record add. A direction of no variance gives zeros."""
    *before, record, at = args
    return _factored(record, at, before[0] if before else None, q.rows, q.scale)


@partial(jax.jit, static_argnums=(3, 4))
def _factored(record: jax.Array, at: jax.Array, before: jax.Array | None, rows: int, scale: float) -> jax.Array:
    total, neurons = record.shape[0], record.shape[-1]
    flat = record.reshape(total, -1)
    places = _places(at, rows, total, flat.dtype)
    covariances = scale / neurons * MATMUL(MATMUL(places, flat), flat.T)  # zero where nothing is recorded yet
    own = MATMUL(covariances, places.T)
    variances = jnp.sum(own * jnp.eye(rows, dtype=own.dtype), 0)
    if before is None:
        return MATMUL(places.T, MATMUL(factor(own, variances), places))
    diagonal = jnp.sum(before * jnp.eye(total, dtype=own.dtype), 0)
    solvable = before + jnp.eye(total, dtype=own.dtype) * (diagonal == 0)
    earlier = jnp.where(diagonal == 0, 0, covariances)
    left = lax.linalg.triangular_solve(solvable, earlier, left_side=False, lower=True, transpose_a=True)
    left = jnp.where(diagonal == 0, 0, left)
    rest = factor(own - MATMUL(left, left.T), variances)
    return before + MATMUL(places.T, left + MATMUL(rest, places))


def _places(at: jax.Array, rows: int, total: int, dtype: jnp.dtype) -> jax.Array:
    """A one for each new row, at its place among all. Products with it slice and update along every batch axis alike."""
    return (jnp.arange(total) == (at + jnp.arange(rows))[:, None]).astype(dtype)


def drawn(q: Drawn, args: Sequence[jax.Array]) -> jax.Array:
    """The Gaussians, neurons first."""
    white, *law = args
    values = white if q.scale == 1.0 else white * q.scale
    if law:
        lower, at = law
        values = MATMUL(MATMUL(_places(at, q.rows, lower.shape[-1], white.dtype), lower), values)
    return values.T.reshape(-1, *q.shape[1:])


def average(q: Average, args: Sequence[jax.Array], dtype: jnp.dtype) -> jax.Array:
    """The moment."""
    return contract(q.spec, args, 1 / args[0].shape[0], q.shape, dtype)
