"""Whole matrices of rotation invariant kernels from their series (`tensorprog.runtime.series`): no layer for each pair.

A pair costs one arc cosine and two short polynomials, whatever the depth. A rounded cosine knows a small angle to half its digits: pairs
that nearly coincide, or are nearly opposite, get theirs from their distance, in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial.chebyshev import cheb2poly

from ntk_rules.collector import older_objects_aside
from ntk_rules.special import signed_angle
from tensorprog.runtime.assembly import Ahead, Interpreted, Pairs
from tensorprog.runtime.kernel import GET, Hypers, Leaves, OfPairs, float_dtype, part, without_branches
from tensorprog.runtime.pieces import Code, Work
from tensorprog.runtime.plane import Plane
from tensorprog.runtime.series import EQUAL, TOLERANCE, Series, make_series

__all__ = ["Interpolated"]

LEAST_PAIRS = 2**15  # fewer do not repay making a series
NEAR = {
    np.dtype(np.float32): 1e-3,
    np.dtype(np.float64): 1e-8,
}  # 1 - |cosine| from which a rounded cosine tells an angle to 1e-6
CHUNK = 2**14  # pairs computed again at once
LEAST_ANGLES = 14  # of a series in norms, unless a network is nearly linear: one layer of erf has 26
OFTEN = 4  # series of costly layers after which XLA's compilation is worth its time
AT_FIRST = 8  # inputs of which nearly always two have different norms, if any two do


class Interpolated:
    """Whole kernel matrices by a series, where that is exact enough and cheaper than the layers."""

    def __init__(
        self,
        features: Callable[[Leaves, Hypers], jax.Array],
        plane: Callable[[], OfPairs],
        *,
        homogeneous: bool,
        kinks: bool,
        cost: float,
        off: Collection[str] = (),
    ):
        """features: phi of one input. plane: makes the kernels as functions of points in the plane. homogeneous: does k depend on the angle
        alone? kinks: has a nonlinearity kinks? If so, and k depends on the norms, it has a corner at equal inputs and no short series.
        cost: of a pair by its layers, in operations; infinite where an expectation has no closed form. off: optimisations that are
        switched off."""
        self._homogeneous, self._corner = homogeneous, kinks and not homogeneous
        of_all = lambda x, hypers: jax.vmap(lambda leaves: features(leaves, hypers))(x)
        self._features, self._features_by_numpy = jax.jit(of_all), Interpreted(of_all)
        self._cost, self._costly = cost, math.isinf(cost)
        self._plane = Plane(plane, self._costly)
        self._live = None if without_branches(off) else np.array(True)
        self._by_numpy = "numpy" not in off
        self._anew = 0  # how many series were made
        self._made: tuple[Any, float, float, Series | None] | None = None

    def work(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> Work | None:
        """The matrices named by `get`; None where there is no series, or the layers cost less."""
        dtype = np.dtype(float_dtype(x1))
        if dtype not in TOLERANCE or len(x1[0]) * len((x2 or x1)[0]) < LEAST_PAIRS:
            return None
        features = [self._features_of(x, hypers) for x in (x1, x2) if x is not None]
        if self._corner and _differ(features[0][0][:AT_FIRST]):
            return None
        sides = [_Side(*found) for found in features]
        if not all(side.usable for side in sides):
            return None
        low, high = min(s.norms.min() for s in sides), max(s.norms.max() for s in sides)
        if self._corner and high - low > EQUAL:
            return None
        in_norms = not self._homogeneous and high - low > EQUAL
        if in_norms and self._cost < _cost((2, 2, 2, LEAST_ANGLES)):
            return None
        series = self._series(hypers, float(low), float(high), dtype)
        if series is None or self._cost < _cost(series.coefficients.shape):
            return None
        return self._tiles(sides, series, dtype, get)

    def _features_of(self, x: Leaves, hypers: Hypers) -> tuple[np.ndarray, Any]:
        """The features of inputs, mostly these themselves, and on what device."""
        if self._by_numpy and all(len(leaf.devices()) == 1 for leaf in x):
            return self._features_by_numpy(x, hypers), x[0].sharding
        found = self._features(x, hypers)
        return np.asarray(found), found.sharding

    def _tiles(self, sides: list[_Side], series: Series, dtype: np.dtype, get: tuple[str, ...]) -> Work:
        which = [GET.index(name) for name in get]
        halves, in_powers = _in_powers(_by_parity(series.coefficients[which]))
        states = [_state(side, series, dtype, which) for side in sides]
        # one transfer, as each of them takes its time
        states, halves, live = jax.device_put((states, halves.astype(dtype), self._live), sides[0].device)
        args = (states[0], states[-1], halves, live)
        options = dict(in_powers=in_powers, gram=len(sides) == 1)

        def tile(rows: int, columns: int) -> Code:
            code = _TILE(*args, np.int32(0), np.int32(0), rows=rows, columns=columns, **options)
            return lambda i, j: code(*args, np.int32(i), np.int32(j))

        first, second = sides[0], sides[-1]

        def exact(pairs: Pairs) -> dict[str, np.ndarray]:
            parts = [Pairs(*(k[start : start + CHUNK] for k in pairs)) for start in range(0, len(pairs.i), CHUNK)]
            values = np.concatenate([series(*_from_chord(first, second, p)) for p in parts], axis=1)
            return {name: values[k] for name, k in zip(get, which, strict=True)}

        return Work(tile, exact)

    def _series(self, hypers: Hypers, low: float, high: float, dtype: np.dtype) -> Series | None:
        """The series for this range of norms, made anew where the last one was for other hyperparameters or a smaller range."""
        key = (dtype, *((name, np.asarray(value).tobytes()) for name, value in sorted(hypers.items())))
        if self._made is None or self._made[0] != key or not self._made[1] <= low <= high <= self._made[2]:
            self._anew += 1
            with jax.enable_x64(True), older_objects_aside():
                by_numpy = self._by_numpy and not (self._costly and self._anew > OFTEN)
                sample = partial(self._plane, hypers=hypers, by_numpy=by_numpy)
                made = make_series(sample, low, high, dtype, self._homogeneous)
            self._made = key, low, high, made
        return self._made[3]


def _cost(shape: tuple[int, ...]) -> float:
    """What a pair costs, in operations of the layers: an arc cosine and two for each power of the angle. Where the coefficients
    depend on the norms, they are arrays of all pairs, and an operation on one takes as long as many of a layer (as measured)."""
    kernels, norms, _, angles = shape
    return 25 + kernels * angles * (2 if norms == 1 else 100)


class _Side:
    """One set of inputs: features, as directions and log-norms in float64."""

    def __init__(self, features: np.ndarray, device: Any):
        self.features, self.device = features, device
        found = _log_norms(self.features)
        self.usable = found is not None
        self.norms = np.zeros(0) if found is None else found

    def directions(self, rows: Any) -> np.ndarray:
        return self.features[rows].astype(np.float64) * np.exp(-self.norms[rows])[:, None]


def _log_norms(features: np.ndarray) -> np.ndarray | None:
    """The log-norms; None where one is not finite."""
    squares = np.einsum("nd,nd->n", features, features, dtype=np.float64, casting="safe")
    return np.log(squares) / 2 if np.all(np.isfinite(squares)) and np.all(squares > 1e-30) else None


def _differ(features: np.ndarray) -> bool:
    """Have they different norms?"""
    norms = _log_norms(features)
    return norms is not None and bool(np.ptp(norms) > EQUAL)


def _state(side: _Side, series: Series, dtype: np.dtype, which: list[int]) -> list[np.ndarray]:
    """What a pair reads of each input: direction, polynomials of its norm, scales. Made by NumPy, for which nothing is compiled."""
    unit = side.features * np.exp(-side.norms)[:, None].astype(dtype)
    found = unit, series.norm_basis(side.norms), series.scale(side.norms)[which].T
    return [a.astype(dtype) for a in found]


def _by_parity(coefficients: np.ndarray) -> np.ndarray:
    """A series in T_d(t), d the last axis, as E(y) + t O(y) with y = 2 t^2 - 1: E and O, along a new axis before the last, in T_d(y).

    Each is half as long, so that its powers hardly cancel, and the two are summed side by side. T_2d(t) = T_d(y), and
    2 t T_d(y) = T_(2d+1)(t) + T_|2d-1|(t).
    """
    even, odd = coefficients[..., 0::2], coefficients[..., 1::2]
    halves = np.zeros((*even.shape[:-1], 2, even.shape[-1]))
    halves[..., 0, :] = even
    after = np.zeros(odd.shape[:-1])
    for d in range(odd.shape[-1] - 1, -1, -1):
        after = (2 if d else 1) * odd[..., d] - (after if d else after / 2)
        halves[..., 1, d] = after
    return halves


def _in_powers(coefficients: np.ndarray) -> tuple[np.ndarray, bool]:
    """The series in powers, which cost half as much, where its terms do not cancel; and whether it is."""
    powers = coefficients @ _powers(coefficients.shape[-1])
    return (powers, True) if np.abs(powers).sum((1, 2, 3, 4)).max() < 4 else (coefficients, False)


@functools.cache
def _powers(n: int) -> np.ndarray:
    """The coefficients of T_0 to T_(n-1), a row each."""
    return np.stack([np.pad(cheb2poly(row), (0, n))[:n] for row in np.eye(n)])


def _tile(
    first: Any, second: Any, coefficients: jax.Array, live: jax.Array | None, i: Any, j: Any,
    *, rows: int, columns: int, in_powers: bool, gram: bool,
) -> tuple[list[jax.Array], jax.Array]:  # fmt: skip
    """The kernels of a tile that begins at i, j; and which of its pairs are near.

    live: true, but XLA does not know that: what stands in a branch is not computed anew for each kernel; None where a barrier does.
    gram: are both sides one? Then an input with itself is not near: its cosine is 1.
    """
    (unit1, basis1, scale1), (unit2, basis2, scale2) = part(first, i, rows), part(second, j, columns)
    cosine = jnp.matmul(unit1, unit2.T, precision="highest")
    near = jnp.abs(cosine) > 1 - NEAR[np.dtype(cosine.dtype)]
    if gram:
        itself = i + np.arange(rows)[:, None] == j + np.arange(columns)
        cosine, near = jnp.where(itself, 1, cosine), near & ~itself
    place = lax.optimization_barrier(_place(cosine)) if live is None else lax.cond(live, _place, lambda c: c, cosine)
    kernels = [
        scale1[:, k, None] * scale2[:, k] * _sum(_terms(coefficients[k], basis1, basis2), place, in_powers)
        for k in range(len(coefficients))
    ]
    return kernels, near


def _place(cosine: jax.Array) -> jax.Array:
    """2 acos(c)/pi - 1: from the angle's [0, pi] to [-1, 1]."""
    cosine = jnp.clip(cosine, -1, 1)
    return signed_angle(cosine, jnp.sqrt((1 - cosine) * (1 + cosine))) * (-2 / math.pi)


_TILE = Ahead(_tile, ("rows", "columns", "in_powers", "gram"))


def _terms(coefficients: jax.Array, basis1: jax.Array, basis2: jax.Array) -> jax.Array:
    """The coefficients of both halves by the angle: numbers, or for each pair (2, n, N1, N2)."""
    norms, _, *angles = coefficients.shape
    if norms == 1:
        return coefficients[0, 0]
    rows, columns = len(basis1), len(basis2)
    left = jnp.matmul(basis1, coefficients.reshape(norms, -1), precision="highest").reshape(rows, norms, -1)
    left = left.transpose(2, 0, 1).reshape(-1, norms)  # one product of matrices for all
    return lax.optimization_barrier(jnp.matmul(left, basis2.T, precision="highest")).reshape(*angles, rows, columns)


def _sum(terms: jax.Array, t: jax.Array, in_powers: bool) -> jax.Array:
    """E(y) + t O(y), y = 2 t^2 - 1, each in powers of y by Horner's rule, or in T_d(y) by Clenshaw's."""
    y = 2 * t * t - 1
    even, odd = (_polynomial(half, y, in_powers) for half in terms)
    return even + t * odd


def _polynomial(terms: jax.Array, x: jax.Array, in_powers: bool) -> jax.Array:
    after = now = jnp.zeros_like(x)
    for d in range(len(terms) - 1, 0, -1):
        after, now = now, (x * now + terms[d] if in_powers else 2 * x * now - after + terms[d])
    return now * x + terms[0] if in_powers else x * now - after + terms[0]


def _from_chord(first: _Side, second: _Side, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The log-norms and angles of pairs, the latter from the distance between directions, or between one and the other's opposite."""
    one, other = first.directions(pairs.i), second.directions(pairs.j)
    opposite = np.einsum("pd,pd->p", one, other) < 0
    half = np.linalg.norm(one - np.where(opposite, -1, 1)[:, None] * other, axis=1) / 2
    turn = 2 * np.arcsin(np.minimum(half, 1))
    return first.norms[pairs.i], second.norms[pairs.j], np.where(opposite, math.pi - turn, turn)
