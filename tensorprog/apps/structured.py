"""The empirical NTK from the uses of every parameter, without derivatives by parameters.

For two uses of one parameter, z = W x at the input X and z' = W x' at X', their part of the NTK is the contraction of
g x with g' x' over the axes of W (see `apps.uses`). Taken as (g . g') (x . x') it costs the width where Jacobians cost
its square; with many positions it can be better to form the Jacobians first. Every order of the four factors is counted, and the one of
fewest operations is taken whose results fit into the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.apps.uses import Use, derivatives, uses_of

__all__ = ["Cost", "cost", "structured"]

Order = tuple[tuple[int, int], ...]
LETTERS = "abcdefghklmnrstuvwxyzABCDEFGHKLMNRSTUVWXYZ"  # but i, j of inputs and o, q of outputs


@dataclass(frozen=True)
class Cost:
    """Multiplications and additions of the contractions, and entries of the largest array."""

    operations: float
    largest: float


@dataclass(frozen=True)
class _Pair:
    """The contraction of two groups of uses: letters of the factors, of the result, and the size of each letter."""

    terms: tuple[str, ...]
    result: str
    sizes: tuple[tuple[str, int], ...]


def structured(
    f: Callable[[Any, Any], Any], params: Any, speeds: Sequence[Sequence[float]], x1: Any, x2: Any, *, full: bool,
    entries: float,
) -> list[jax.Array]:  # fmt: skip
    """For each of several speeds of the leaves of params the NTK, (N1, N2, O), or with `full` (N1, N2, O, O).

    entries: of an array, at most, if possible.
    """
    one = jax.tree.map(lambda a: a[0], x1)
    uses, shapes, opaque = uses_of(f, params, one)
    groups = _groups(uses, [max(leaf) for leaf in zip(*speeds, strict=True)])
    both = [_pieces(f, params, x, shapes, opaque, groups) for x in (x1, x2)]
    n1, n2 = (jax.tree.leaves(x)[0].shape[0] for x in (x1, x2))
    out = jax.eval_shape(f, params, one)
    o = math.prod(out.shape)
    totals = [jnp.zeros((n1, n2, o, *([o] if full else [])), out.dtype) for _ in speeds]
    for a, first in enumerate(groups):
        for b, second in enumerate(groups):
            if first.leaf == second.leaf:
                pair = _pair(first, second, (len(groups[first]), len(groups[second])), (n1, n2, o), full)
                arrays = [array for array in (*both[0][a], *both[1][b]) if array is not None]
                made = _contract(pair, arrays, best(pair, entries)[0])
                totals = [t + own[first.leaf] ** 2 * made for t, own in zip(totals, speeds, strict=True)]
    return totals


def cost(
    f: Callable[[Any, Any], Any], params: Any, speeds: Sequence[float], x: Any, sizes: tuple[int, int, int], *, full: bool,
    entries: float,
) -> Cost:  # fmt: skip
    """What the contractions cost for tiles of (N1, N2) inputs and O outputs. x: one input."""
    uses, _, _ = uses_of(f, params, x)
    groups = _groups(uses, speeds)
    held = sum(_entries(use) * sizes[2] * sum(sizes[:2]) * len(at) for use, at in groups.items())
    operations, largest = 0.0, float(held)
    for a in groups:
        for b in groups:
            if a.leaf == b.leaf:
                found = best(_pair(a, b, (len(groups[a]), len(groups[b])), sizes, full), entries)[1]
                operations, largest = operations + found.operations, max(largest, found.largest)
    return Cost(operations, largest)


def _entries(use: Use) -> int:
    sizes = dict(use.sizes)
    return math.prod(sizes[n] for n in use.g) + math.prod(sizes[n] for n in use.x)


def _groups(uses: Sequence[Use], speeds: Sequence[float]) -> dict[Use, list[int]]:
    """Uses of one kind together, as the steps of a loop are; parameters that do not move are left out."""
    found: dict[Use, list[int]] = {}
    for k, use in enumerate(uses):
        if speeds[use.leaf]:
            found.setdefault(use, []).append(k)
    return found


def _pieces(
    f: Any, params: Any, x: Any, shapes: Any, opaque: frozenset[int], groups: Mapping[Use, list[int]]
) -> list[tuple[Any, Any]]:
    """For each group g (N, uses, O, ..) and x (N, uses, ..)."""
    found = jax.vmap(lambda one: derivatives(f, params, one, shapes, opaque))(x)

    def stacked(use: Use, at: list[int]) -> tuple[Any, Any]:
        g = jnp.stack([found[k][0] for k in at], 1)
        return g, jnp.stack([found[k][1] for k in at], 1) if use.x else None

    return [stacked(use, at) for use, at in groups.items()]


def _pair(a: Use, b: Use, counts: tuple[int, int], sizes: tuple[int, int, int], full: bool) -> _Pair:
    letters, known = iter(LETTERS), {"i": sizes[0], "j": sizes[1], "o": sizes[2], "q": sizes[2]}
    shared: dict[str, str] = {}
    terms = []
    for use, count, of, out in ((a, counts[0], "i", "o"), (b, counts[1], "j", "q" if full else "o")):
        own: dict[str, str] = {}
        step = next(letters)
        known[step] = count
        for name, size in use.sizes:
            where = shared if name.startswith("w") else own
            letter = where.get(name) or next(letters)
            where[name], known[letter] = letter, size
        read = shared | own
        terms.append(of + step + out + "".join(read[n] for n in use.g))
        if use.x:
            terms.append(of + step + "".join(read[n] for n in use.x))
    return _Pair(tuple(terms), "ijoq" if full else "ijo", tuple(known.items()))


def _orders(count: int) -> list[Order]:
    """Every way to contract so many factors two at a time; results are put at the end."""
    if count == 1:
        return [()]
    pairs = [(m, n) for m in range(count) for n in range(m + 1, count)]
    return [(pair, *rest) for pair in pairs for rest in _orders(count - 1)]


def _after(terms: list[str], pair: tuple[int, int], result: str) -> tuple[str, str, str, list[str]]:
    """The two factors of a step, what comes of them, and the others."""
    m, n = pair
    others = [t for k, t in enumerate(terms) if k not in pair]
    needed = set(result).union(*others)
    made = "".join(dict.fromkeys(c for c in terms[m] + terms[n] if c in needed))
    return terms[m], terms[n], made if others else result, others


@cache
def best(pair: _Pair, entries: float) -> tuple[Order, Cost]:
    """The order of fewest operations whose results fit, or where none does the one of the smallest results."""
    sizes = dict(pair.sizes)
    found = []
    for order in _orders(len(pair.terms)):
        terms, operations, largest = list(pair.terms), 0.0, 0.0
        for step in order:
            first, second, made, others = _after(terms, step, pair.result)
            operations += 2.0 * math.prod(sizes[c] for c in {*first, *second})
            largest = max(largest, float(math.prod(sizes[c] for c in made)))
            terms = [*others, made]
        found.append((order, Cost(operations, largest)))
    return min(found, key=lambda item: (max(item[1].largest, entries), item[1].operations, item[1].largest))


def _contract(pair: _Pair, arrays: list[Any], order: Order) -> jax.Array:
    terms = list(pair.terms)
    for step in order:
        first, second, made, others = _after(terms, step, pair.result)
        product = jnp.einsum(f"{first},{second}->{made}", arrays[step[0]], arrays[step[1]])
        arrays = [a for k, a in enumerate(arrays) if k not in step] + [product]
        terms = [*others, made]
    return arrays[0]
