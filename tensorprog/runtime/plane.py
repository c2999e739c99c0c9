"""The kernels of points in the plane, by the layers: what the series of `tensorprog.runtime.series` are made from.

Points are few, and NumPy has their kernels before XLA has compiled the layers. Of costly layers, those without closed forms, most is
computed of single inputs, such as coefficients of a function at a variance: these are traced for norms and directions apart, so that it is
computed once for each norm, not for each pair.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules.interpreted import interpreted
from tensorprog.runtime.kernel import Hypers, OfPairs

__all__ = ["Plane"]

EAST = np.array([1.0, 0.0])
PAIRS = (1024,)  # computed together; of costly layers so many norms, others, and directions of these
ONE_NORM, NORMS = (1, 1, 128), (16, 16, 32)
_TOGETHER = [(0, 0, 0)]  # axes of norms, of others and of directions that are one
_EACH = [(None, None, 0), (None, 0, None), (0, None, None)]

Sizes = tuple[int, ...]


class Plane:
    """A kernel of points in the plane. lowered: makes it, as functions of a norm and a direction. costly: has it no closed form?"""

    def __init__(self, lowered: Callable[[], OfPairs], costly: bool):
        self._lowered, self._costly = functools.cache(lambda: lowered().guarded), costly
        self._traced: dict[Sizes, Any] = {}
        self._codes: dict[tuple[Sizes, bool], Callable[..., Sequence[Any]]] = {}

    def __call__(
        self, first: np.ndarray, second: np.ndarray, angles: np.ndarray, hypers: Hypers, by_numpy: bool = True
    ) -> np.ndarray:
        """nngp and ntk, (2, N1, N2, A), of points of these log-norms, and of those, with these angles between them; in float64, to be called
        under `jax.enable_x64`. by_numpy: or compiled, for what is asked again and again."""
        sizes = PAIRS if not self._costly else ONE_NORM if len(first) == len(second) == 1 else NORMS
        values = {name: jnp.asarray(np.asarray(value), np.float64) for name, value in hypers.items()}
        points = np.exp(first)[:, None], np.exp(second)[:, None], np.stack([np.cos(angles), np.sin(angles)], 1)
        shape, code = tuple(map(len, points)), self._code(sizes, values, by_numpy)
        some = lambda *at: code(*(x[k] for x, k in zip(points, at, strict=True)), values)
        if self._costly:
            return _in_blocks(some, shape, sizes)
        places = [k.ravel() for k in np.indices(shape)]
        return _in_blocks(lambda at: some(*(k[at] for k in places)), (math.prod(shape),), sizes).reshape(2, *shape)

    def _code(self, sizes: Sizes, hypers: Hypers, by_numpy: bool) -> Callable[..., Sequence[Any]]:
        if sizes not in self._traced:
            self._traced[sizes] = self._trace(sizes, hypers)
        if (sizes, by_numpy) not in self._codes:
            traced = self._traced[sizes]
            self._codes[sizes, by_numpy] = _run_by_numpy(traced) if by_numpy else traced.lower().compile()
        return self._codes[sizes, by_numpy]

    def _trace(self, sizes: Sizes, hypers: Hypers) -> Any:
        lowered = self._lowered()

        def kernels(norms: jax.Array, others: jax.Array, directions: jax.Array, hypers: Hypers) -> Any:
            point = jax.jit(
                lambda norm, direction: lowered.state([norm, direction], hypers, None, False)
            )  # traced once
            pair = lambda u, v, direction: lowered.pair(point(u, EAST), point(v, direction), None, False)
            for axes in _EACH if self._costly else _TOGETHER:
                pair = jax.vmap(pair, axes)
            return pair(norms, others, directions)

        counts = sizes if self._costly else sizes * 3
        kinds = [jax.ShapeDtypeStruct((n, size), np.float64) for n, size in zip(counts, (1, 1, 2), strict=True)]
        return jax.jit(kernels).trace(*kinds, hypers)


def _run_by_numpy(traced: Any) -> Callable[..., list[np.ndarray]]:
    run = interpreted(traced.jaxpr)
    return lambda *arguments: run(*jax.tree.leaves(arguments))


def _in_blocks(run: Callable[..., Sequence[Any]], shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Two arrays of this shape from a function of places along each axis that gives blocks of these sizes: the last place again, to fill the
    last block."""
    found = np.empty((2, *shape))
    for starts in itertools.product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True))):
        places = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        block = np.stack(run(*(np.minimum(at, n - 1) for at, n in zip(places, shape, strict=True))))
        part = found[:, *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
        part[...] = block[:, *map(slice, part.shape[1:])]
    return found
