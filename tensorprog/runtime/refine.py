"""Near-duplicate inputs in float32: their NTK is computed again in float64.

A neural tangent kernel with kinked nonlinearities changes like the angle between two inputs where they nearly
coincide, and a rounded cosine knows an angle only to half its digits. Such pairs are few, so computing them
again costs little. Equal inputs have the kernel of an input with itself, which is exact.

How near two inputs are is read off the nngp and off the inputs themselves: a first layer sees their directions alone, and biases above it
move apart what was near there, as x and 2 x with a little noise. The nngp of an average over the width, a product of two numbers, says
nothing of it: with such an output all is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.runtime.assembly import Ahead, Job, Pairs, at_once, cores
from tensorprog.runtime.kernel import Hypers, Leaves, float_dtype
from tensorprog.runtime.tiles import pairs_in_memory

__all__ = [
    "ANGLE",
    "ANGLE_OF_OUTPUTS",
    "ANGLE_OF_POSITIONS",
    "Refine",
    "in_float64",
    "near_pairs",
    "sketch",
    "stds_of",
    "unlike",
]

ANGLE = 1e-3  # 1 - cosine below which a pair is near; above, float32 keeps the NTK to 1e-5 at depth 20
ANGLE_OF_OUTPUTS = 1e-2  # the same for several outputs, of which one may stand many layers above another
ANGLE_OF_POSITIONS = 1e-4  # the same where a kernel is an average over positions, whose errors average as well
CHUNK = 1024
SKETCH = 32  # random coordinates of a direction
SURELY = 3.5  # times the square of a distance, the square of its sketch is above that with a probability of 1e-9 (a chi-square of 32)


class Refine:
    """The NTK of chosen pairs in float64, by the kernel's function of pairs."""

    def __init__(
        self,
        rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]],
        entries: int,
        angle: float | None = None,
        directions: bool = True,
        noise: bool = False,
    ):
        """rows: (nngp, what is computed again) of the i-th with the i-th input. entries: of the largest array of a pair. angle: 1 - cosine
        below which a pair is near. directions: are inputs of one direction near, whatever their nngp? noise: is anything drawn anew for every
        input, so that equal ones are two?"""
        self.directions, self._noise = directions, noise
        self._rows = Ahead(lambda x1, x2, hypers: rows(x1, x2, hypers)[1])
        self._entries = entries
        self._angle = angle or (ANGLE if entries == 1 else ANGLE_OF_POSITIONS)

    def near(self, nngp: Any, std1: Any, std2: Any) -> Any:
        """Which pairs are near at some positions of the output, by their nngp and the standard deviations (N, positions) of both inputs, in
        NumPy or in JAX."""
        (n1, places), n2 = std1.shape, len(std2)
        kernel = nngp.reshape(n1, n2, places, places)
        return (kernel > (1 - self._angle) * std1[:, None, :, None] * std2[None, :, None, :]).any((2, 3))

    def near_itself(self, own: Any) -> Any:
        """Which inputs are near themselves, at different positions, where the output has any. own: their nngp (N, *axes, *axes)."""
        std = stds_of(own)
        places = std.shape[1]
        if places == 1:
            return None
        high = own.reshape(-1, places, places) > (1 - self._angle) * std[:, :, None] * std[:, None, :]
        return (high & ~np.eye(places, dtype=bool)).any((1, 2))

    def alike(self, first: Any, second: Any) -> Any:
        """Which pairs have nearly one direction, or opposite ones, by their sketches: for inputs of many entries a few others too."""
        squares = [(a * a).sum(-1) for a in (first, second)]
        gap = squares[0][:, None] + squares[1] - 2 * abs(first @ second.T)
        return gap < 2 * self._angle * (SURELY if first.shape[-1] == SKETCH else 1)

    def mended(
        self, x1: Leaves, x2: Leaves, own: np.ndarray, near_itself: np.ndarray | None, hypers: Hypers, pairs: Pairs
    ) -> np.ndarray:
        """The NTK of near pairs. own: that of each of the first inputs with itself. near_itself: of `Refine.near_itself`."""
        if self._noise:
            return self.exact(x1, x2, hypers, pairs)
        found, differ = own[pairs.i], unlike(x1, x2, pairs)
        parted = np.flatnonzero(differ if near_itself is None else differ | near_itself[pairs.i])
        if len(parted):
            found[parted] = self.exact(x1, x2, hypers, Pairs(pairs.i[parted], pairs.j[parted]))
        if near_itself is not None:
            found[~differ] = _symmetric(found[~differ])
        return found

    def exact(self, x1: Leaves, x2: Leaves, hypers: Hypers, pairs: Pairs) -> np.ndarray:
        """The NTK of the pairs, one at least, rounded to float32."""
        count, found = len(pairs.i), np.empty(0, np.float32)
        workers = cores()
        share = 2 ** math.ceil(math.log2(math.ceil(count / workers)))  # few sizes are compiled
        size = min(CHUNK, pairs_in_memory(8 * self._entries * workers), share)
        with jax.enable_x64(True):
            wide = [[_widened(np.asarray(leaf)) for leaf in x] for x in (x1, x2)]
            values = {name: jnp.asarray(np.asarray(value), np.float64) for name, value in hypers.items()}

            def jobs() -> Iterator[Job[tuple[int, np.ndarray]]]:
                for start in range(0, count, size):
                    chosen = np.minimum(np.arange(start, start + size), count - 1)
                    inputs = [[jnp.asarray(leaf[k[chosen]]) for leaf in x] for x, k in zip(wide, pairs, strict=True)]
                    code = self._rows(*inputs, values)
                    yield partial(_begin, start, code, inputs, values)

            for start, ntk in at_once(jobs(), workers):
                if not len(found):
                    found = np.empty((count, *ntk.shape[1:]), np.float32)
                found[start : start + size] = ntk[: count - start]
        return found


def stds_of(own: Any) -> Any:
    """The standard deviations at every position, (N, positions), of the nngp (N, *axes, *axes) of inputs with themselves."""
    places = math.isqrt(math.prod(own.shape[1:]))
    return own.reshape(-1, places, places).diagonal(0, 1, 2) ** 0.5


def _symmetric(own: np.ndarray) -> np.ndarray:
    """What stands above the diagonal of positions, below it as well."""
    places = math.isqrt(math.prod(own.shape[1:]))
    square = own.reshape(-1, places, places)
    return np.where(np.tri(places, dtype=bool).T, square, square.swapaxes(1, 2)).reshape(own.shape)


def sketch(x: Leaves) -> jax.Array:
    """The directions of inputs, (N, entries); of many entries in random coordinates, which keep a distance about as it is."""
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1).astype(float_dtype(x)) for leaf in x], 1)
    size = jnp.linalg.norm(flat, axis=1, keepdims=True)
    directions = flat / jnp.where(size > 0, size, 1)
    if flat.shape[1] <= SKETCH:
        return directions
    turned = np.random.default_rng(0).standard_normal((flat.shape[1], SKETCH)) / math.sqrt(SKETCH)
    return directions @ turned.astype(flat.dtype)


def unlike(x1: Leaves, x2: Leaves, pairs: Pairs) -> np.ndarray:
    """Which pairs are of different inputs."""
    found = np.zeros(len(pairs.i), bool)
    for a, b in zip(x1, x2, strict=True):
        first, second = np.asarray(a), np.asarray(b)
        for start in range(0, len(found), CHUNK):
            some = slice(start, start + CHUNK)
            differs = first[pairs.i[some]] != second[pairs.j[some]]
            found[some] |= differs.reshape(len(differs), -1).any(1)
    return found


Own = tuple[Any, Any, Any]  # the nngp of an output, of all pairs, of the first and of the second inputs with themselves


def near_pairs(refine: Refine, outputs: Sequence[Own], x1: Leaves, x2: Leaves) -> np.ndarray:
    """Which pairs of inputs are near, in some output or by themselves; some rows at a time, for the sake of memory."""
    if 0 in (len(x1[0]), len(x2[0])):
        return np.zeros((len(x1[0]), len(x2[0])), bool)
    parts = []
    for start in range(0, len(x1[0]), CHUNK):
        rows = slice(start, start + CHUNK)
        near = _near_inputs([leaf[rows] for leaf in x1], x2)
        for nngp, own1, own2 in outputs:
            near |= _near_outputs(refine, nngp[rows], own1[rows], own2)
        parts.append(near)
    return np.concatenate(parts)


def _near_outputs(refine: Refine, nngp: Any, own1: Any, own2: Any) -> np.ndarray:
    """Which pairs are near at some positions of an output. nngp: (N1, N2, *A, *A) of an output with axes A; own1, own2: (N, *A, *A)."""
    n1, n2 = nngp.shape[:2]
    first, second = stds_of(np.asarray(own1)), stds_of(np.asarray(own2))
    places = first.shape[1]
    kernels = np.asarray(nngp).reshape(n1, n2, places, places)
    found = np.zeros((n1, n2), bool)
    for a in range(places):
        for b in range(places):
            found |= refine.near(kernels[:, :, a, b], first[:, a : a + 1], second[:, b : b + 1])
    return found


def _near_inputs(x1: Leaves, x2: Leaves) -> np.ndarray:
    """Which pairs have nearly one direction: that is what a first layer sees, also where later ones, after biases, see more."""
    flat = lambda x: np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in x], 1)
    a, b = flat(x1), flat(x2)
    sizes = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.abs(a @ b.T) >= (1 - ANGLE_OF_OUTPUTS) * sizes


def in_float64(
    function: Callable[[Leaves, Leaves | None, Hypers], list[jax.Array]], x1: Leaves, x2: Leaves | None, hypers: Hypers
) -> list[jax.Array]:
    """The same, computed in float64, in float32."""
    widened = lambda x: [jnp.asarray(_widened(np.asarray(leaf))) for leaf in x]
    with jax.enable_x64(True):
        values = {name: jnp.asarray(_widened(np.asarray(value))) for name, value in hypers.items()}
        found = function(widened(x1), None if x2 is None else widened(x2), values)
        narrow = [k.astype(np.float32) if len(k.devices()) > 1 else np.asarray(k).astype(np.float32) for k in found]
    return [jnp.asarray(k) for k in narrow]


def _begin(
    start: int, code: Callable[..., Any], inputs: list[Leaves], hypers: Hypers
) -> Callable[[], tuple[int, np.ndarray]]:
    ntk = code(*inputs, hypers)
    return lambda: (start, np.asarray(ntk))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
