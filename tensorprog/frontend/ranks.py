"""Positions in order, written in simpler operations: each is ranked among the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.rows import Along, Code, apart, rows_of

__all__ = ["has_rank", "order_statistic", "sorted_rows", "top"]

MOST_RANKED = 3  # positions whose comparisons are written out; ranks of more are functions of their own, of one key
MOST_SORTED = 16  # positions; derivatives take a time of the square of their number


def sorted_rows(along: Along, *, dimension: int, num_keys: int, **_: Any) -> Code:
    """lax.sort: the keys in order, the other operands along with them."""
    apart(along, [dimension], "it sorts")

    def code(*operands: jax.Array) -> list[jax.Array]:
        rows = [rows_of(x, dimension) for x in operands]
        _check_count(len(rows[0]), num_keys)
        if len(operands) == 1:
            return [jnp.stack(_in_order(rows[0]), dimension)]
        at_rank = _ranked(rows[:num_keys])
        places = range(len(rows[0]))
        picked = [[at_rank(k, some) for k in places] for some in rows]
        if num_keys == 1:
            picked[0] = _in_order(rows[0])
        return [jnp.stack(some, dimension) for some in picked]

    return code


def _check_count(count: int, keys: int = 1) -> None:
    most = MOST_SORTED if keys == 1 else MOST_RANKED
    if count > most:
        raise Refusal(
            f"it sorts {count} positions, and no more than {most} are ranked here"
            + (" by several keys" if keys > 1 else ""),
            "sort fewer positions, or take their maximum, minimum or mean",
        )


def _in_order(rows: Sequence[jax.Array]) -> list[jax.Array]:
    """From the smallest to the largest."""
    if rows[0].dtype == bool:
        whole = _in_order([r.astype(jnp.int32) for r in rows])
        return [w != 0 for w in whole]
    return [order_statistic(jnp.int32(k), *rows) for k in range(len(rows))] if len(rows) > 1 else list(rows)


@jax.custom_jvp
def order_statistic(k: jax.Array, *rows: jax.Array) -> jax.Array:
    """The k-th smallest; a row of the table of elementwise functions, by its name."""
    return jnp.sort(jnp.stack(rows), axis=0)[k]


@order_statistic.defjvp
def _of_tangents(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (k, *rows), (_, *moved) = primals, tangents
    places = jnp.argsort(jnp.stack(rows), axis=0)[k]
    return order_statistic(k, *rows), jnp.take_along_axis(jnp.stack(moved), places[None], 0)[0]


@jax.custom_jvp
def has_rank(k: jax.Array, i: jax.Array, *rows: jax.Array) -> jax.Array:
    """1 where the i-th is the k-th smallest, of equal ones the first, else 0; a row of the table of elementwise functions too."""
    return (jnp.argsort(jnp.stack(rows), axis=0)[k] == i).astype(rows[0].dtype)


@has_rank.defjvp
def _of_steps(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    made = has_rank(*primals)
    return made, jnp.zeros_like(made)


def _ranked(keys: Sequence[Sequence[jax.Array]]) -> Callable[[int, Sequence[jax.Array]], jax.Array]:
    """What gives, of some rows, the one whose key is the k-th smallest, of equal ones the first."""
    if len(keys[0]) <= MOST_RANKED:
        ranks = _ranks(keys)
        return lambda k, rows: _at_rank(ranks, k, rows)
    (key,) = ([x.astype(jnp.int32) if x.dtype == bool else x for x in some] for some in keys)

    def at_rank(k: int, rows: Sequence[jax.Array]) -> jax.Array:
        holds = [has_rank(jnp.int32(k), jnp.int32(i), *key) for i in range(len(rows))]
        total = sum((h * row for h, row in zip(holds[1:], rows[1:], strict=True)), start=holds[0] * rows[0])
        return total != 0 if rows[0].dtype == bool else total.astype(rows[0].dtype)

    return at_rank


def _ranks(keys: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
    """How many entries stand before each one; equal ones in the order in which they are given."""
    count = len(keys[0])
    ranks = []
    for i in range(count):
        before = [_before(keys, j, i).astype(jnp.int32) for j in range(count) if j != i]
        ranks.append(sum(before[1:], start=before[0]) if before else jnp.zeros(keys[0][0].shape, jnp.int32))
    return ranks


def _before(keys: Sequence[Sequence[jax.Array]], j: int, i: int) -> jax.Array:
    """Does entry j come before entry i? By the first key in which they differ."""
    answer = None
    for key in reversed(keys):
        a, b = key[j], key[i]
        last = a <= b if j < i else a < b
        answer = last if answer is None else (a < b) | ((a == b) & answer)
    assert answer is not None
    return answer


def _at_rank(ranks: Sequence[jax.Array], k: int, rows: Sequence[jax.Array]) -> jax.Array:
    found = rows[-1]
    for rank, row in zip(ranks[:-1], rows[:-1], strict=True):
        found = lax.select(rank == k, row, found)
    return found


def top(along: Along, *, k: int, **params: Any) -> Code:
    """lax.top_k: the largest and their places, of equal ones the first."""
    axis = params.get("axis", -1)

    def code(x: jax.Array) -> list[jax.Array]:
        at = axis % x.ndim
        apart(along, [at], "it takes the largest")
        rows = rows_of(x, at)
        _check_count(len(rows))
        at_rank = _ranked([[-r for r in rows]])
        places = [jnp.full(rows[0].shape, i, jnp.int32) for i in range(len(rows))]
        largest = _in_order(rows)[::-1][:k]
        return [jnp.stack(largest, at), jnp.stack([at_rank(i, places) for i in range(k)], at)]

    return code
