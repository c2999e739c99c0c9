"""Kernels of rotation invariant networks from a table: functions of two norms and an angle, computed once and interpolated.

Where the kernel depends on its inputs only through |phi|, |phi'| and the angle between them (`tensorprog.kernel.invariant`), a
matrix of it needs no layer for each pair. With the kernel's own scale taken out,

    K(x, x') = s(x) s(x') k(log|phi|, log|phi'|, angle),    s(x)^2 = K(x, x),

k is bounded by one and smooth: the square roots that kinked nonlinearities have at cosines of 1 and -1 are none in the angle, in
which each layer is analytic. So its Chebyshev series converges geometrically. For homogeneous networks, and for inputs of equal
norms, k depends on the angle alone, and a pair costs one arc cosine and two short polynomials, whatever the depth.

The series is made in float64, from the kernel's own function of pairs, for the range of norms at hand; it is used where its last
coefficients are below the tolerance and it agrees at random places. Where it is not, the caller computes the layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial.chebyshev import cheb2poly, chebval, chebvander

from ntk_rules.special import angle
from tensorprog.runtime.kernel import CACHED, GET, Hypers, Leaves, float_dtype
from tensorprog.runtime.operations import operations

__all__ = ["Interpolated", "Series"]

LEAST_PAIRS = 2**15  # fewer do not repay making a series
TOLERANCE = {np.dtype(np.float32): 2e-8, np.dtype(np.float64): 1e-13}  # of the coefficients left out, relative to k
AGREEMENT = {np.dtype(np.float32): 1e-7, np.dtype(np.float64): 1e-12}  # with the kernel at random places
NEAR = {
    np.dtype(np.float32): 1e-3,
    np.dtype(np.float64): 1e-8,
}  # 1 - |cosine| from which a rounded cosine tells an angle to 1e-6
EQUAL = 1e-6  # range of log-norms that rounding makes
MOST_ANGLES, MOST_NORMS = 128, 17
AT_ONCE = 1024
TILE = 128
LARGE = 2**24  # entries of a matrix that is computed at once

Samples = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Series:
    """Chebyshev series of one network's kernels over a range of norms; arrays are float64.

    low, high: log-norms. scales: (2, d) coefficients of log s. coefficients: (2, m, m, n), of k by both norms and the angle. The
    first axis: nngp, ntk.
    """

    low: float
    high: float
    scales: np.ndarray
    coefficients: np.ndarray

    def scale(self, norms: np.ndarray) -> np.ndarray:
        """s of inputs of these log-norms, (2, N)."""
        at = self._place(norms)
        return np.exp(np.stack([chebval(at, c) for c in self.scales]))

    def norm_basis(self, norms: np.ndarray) -> np.ndarray:
        """The polynomials of log-norms, (N, m)."""
        return chebvander(self._place(norms), self.coefficients.shape[1] - 1)

    def __call__(self, norms1: np.ndarray, norms2: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """The kernels of pairs, (2, N)."""
        in_angle = chebvander(angles * (2 / math.pi) - 1, self.coefficients.shape[3] - 1)
        by_norms = np.einsum(
            "kabd,pa,pb->kpd", self.coefficients, self.norm_basis(norms1), self.norm_basis(norms2), optimize=True
        )
        return self.scale(norms1) * self.scale(norms2) * np.einsum("kpd,pd->kp", by_norms, in_angle)

    def _place(self, norms: np.ndarray) -> np.ndarray:
        return (norms - (self.low + self.high) / 2) * (2 / max(self.high - self.low, 1e-300))


def make_series(sample: Samples, low: float, high: float, dtype: Any, homogeneous: bool) -> Series | None:
    """The series to the tolerance of `dtype`, or None where there is none short enough.

    sample: both kernels, (2, N), at log-norms and angles. homogeneous: k does not depend on the norms.
    """
    tolerance, norms, angles = TOLERANCE[dtype], 1 if homogeneous or high - low < 1e-12 else 3, 16
    scales = _scales(sample, low, high, tolerance)
    if scales is None:
        return None
    while norms <= MOST_NORMS and angles <= MOST_ANGLES:
        place = [(low + high) / 2 + (high - low) / 2 * _nodes(norms)] * 2 + [(_nodes(angles) + 1) * (math.pi / 2)]
        u, v, t = (a.ravel() for a in np.meshgrid(*place, indexing="ij"))
        whole = Series(low, high, scales, np.ones((2, 1, 1, 1)))
        values = sample(u, v, t) / (whole.scale(u) * whole.scale(v))
        if not np.all(np.isfinite(values)):
            return None
        found = _transformed(values.reshape(2, norms, norms, angles))
        size = np.abs(found)
        more_angles = size[..., -3:].max() > tolerance
        more_norms = norms > 1 and max(size[:, -1].max(), size[:, :, -1].max()) > tolerance
        if not (more_angles or more_norms):
            made = Series(low, high, scales, _trimmed(found, tolerance))
            return made if _agrees(made, sample, AGREEMENT[dtype]) else None
        norms, angles = 2 * norms - 1 if more_norms else norms, 2 * angles if more_angles else angles
    return None


def _scales(sample: Samples, low: float, high: float, tolerance: float) -> np.ndarray | None:
    """log s as a series in the log-norm."""
    for n in (4, 8, 16, 32):
        at = (low + high) / 2 + (high - low) / 2 * _nodes(n)
        own = sample(at, at, np.zeros(n))
        if not np.all(np.isfinite(own)) or np.any(own < 0) or np.any((own == 0).any(1) != (own == 0).all(1)):
            return None
        frozen = own[:, :1] == 0  # nothing is trained: that kernel is zero
        found = _transformed(np.log(np.where(frozen, 1, own)) / 2)
        if n == 4 and high - low < 1e-12:
            return found[:, :1]
        if np.abs(found[:, -2:]).max() <= tolerance:
            return found
    return None


def _nodes(n: int) -> np.ndarray:
    return np.cos(math.pi * (np.arange(n) + 0.5) / n)


def _transformed(values: np.ndarray) -> np.ndarray:
    """From values at Chebyshev's nodes along every axis but the first to coefficients."""
    for axis in range(1, values.ndim):
        n = values.shape[axis]
        to = chebvander(_nodes(n), n - 1).T * (2 / n)
        to[0] /= 2
        values = np.moveaxis(np.tensordot(to, values, (1, axis)), 0, axis)
    return values


def _trimmed(coefficients: np.ndarray, tolerance: float) -> np.ndarray:
    """Without the last polynomials in the norms and in the angle, all of whose coefficients together are below the tolerance."""
    size = np.abs(coefficients)

    def kept(axes: tuple[int, ...]) -> int:
        rest = np.cumsum(size.sum(axes).max(0)[::-1])[::-1]  # of this and all later ones
        return max(1, int(np.sum(rest > tolerance)))

    norms = max(kept((2, 3)), kept((1, 3)))
    return coefficients[:, :norms, :norms, : kept((1, 2))]


def _agrees(series: Series, sample: Samples, tolerance: float) -> bool:
    """Does it agree with the kernel at random places, the ends of the angles among them?"""
    random = np.random.default_rng(0)
    u, v = random.uniform(series.low, series.high, (2, AT_ONCE))
    t = math.pi * random.beta(0.5, 0.5, AT_ONCE)
    difference = np.abs(series(u, v, t) - sample(u, v, t)) / (series.scale(u) * series.scale(v))
    rounding = 8 * np.finfo(float).eps / np.sin(t)  # of the angle that the layers have from its cosine
    return bool(np.all(difference <= tolerance + rounding))


class Interpolated:
    """Whole kernel matrices by a series, where that is exact enough and cheaper than the layers."""

    def __init__(
        self,
        features: Callable[[Leaves, Hypers], jax.Array],
        rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]],
        *,
        homogeneous: bool,
        kinks: bool,
    ):
        """features: phi of one input. rows: the kernels of pairs of points in the plane. homogeneous: does k depend on the angle alone?
        kinks: has a nonlinearity kinks? If so, and k depends on the norms, it has a corner at equal inputs and no short series."""
        self._homogeneous, self._corner = homogeneous, kinks and not homogeneous
        self._features = jax.jit(lambda x, hypers: jax.vmap(lambda leaves: features(leaves, hypers))(x))
        self._layers = rows
        self._rows = jax.jit(rows, compiler_options={"xla_backend_optimization_level": 0})  # it runs once or twice
        self._made: tuple[Any, float, float, Series | None] | None = None
        self._cost: float | None = None

    def __call__(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array] | None:
        """The matrices named by `get`; None where there is no series, or the layers cost less."""
        dtype = np.dtype(float_dtype(x1))
        pairs = len(x1[0]) * len((x2 or x1)[0])
        if dtype not in TOLERANCE or pairs < LEAST_PAIRS or (x2 is None and pairs > LARGE):
            return None  # a gram matrix keeps two more arrays of its size while it is made
        sides = [_Side(self._features(x, hypers)) for x in (x1, x2) if x is not None]
        if not all(side.usable for side in sides):
            return None
        low, high = min(s.norms.min() for s in sides), max(s.norms.max() for s in sides)
        if self._corner and high - low > EQUAL:
            return None
        series = self._series(hypers, float(low), float(high), dtype)
        if series is None or self._cost_of_layers(hypers) < _cost(series.coefficients.shape):
            return None
        return _matrices(sides, series, dtype, [GET.index(name) for name in get])

    def _series(self, hypers: Hypers, low: float, high: float, dtype: np.dtype) -> Series | None:
        """The series for this range of norms, made anew where the last one was for other hyperparameters or a smaller range."""
        key = (dtype, *((name, np.asarray(value).tobytes()) for name, value in sorted(hypers.items())))
        if self._made is None or self._made[0] != key or not self._made[1] <= low <= high <= self._made[2]:
            with jax.enable_x64(True):
                made = make_series(partial(self._sample, hypers), low, high, dtype, self._homogeneous)
            self._made = key, low, high, made
        return self._made[3]

    def _sample(self, hypers: Hypers, u: np.ndarray, v: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The kernels at log-norms u, v and angles t, (2, N), in batches of one size."""
        values = {name: jnp.asarray(np.asarray(value), np.float64) for name, value in hypers.items()}
        first = np.exp(u)[:, None] * np.array([1.0, 0.0])
        second = np.exp(v)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
        found = []
        for start in range(0, len(u), AT_ONCE):
            at = np.minimum(np.arange(start, start + AT_ONCE), len(u) - 1)
            found.append(np.stack(self._rows([jnp.asarray(first[at])], [jnp.asarray(second[at])], values)))
        return np.concatenate(found, axis=1)[:, : len(u)]

    def _cost_of_layers(self, hypers: Hypers) -> float:
        if self._cost is None:
            point = [jax.ShapeDtypeStruct((1, 2), np.float32)]
            self._cost = operations(jax.make_jaxpr(self._layers)(point, point, hypers).jaxpr)
        return self._cost


def _cost(shape: tuple[int, ...]) -> float:
    """What a pair costs, in operations of the layers: an arc cosine and two for each power of the angle. Where the coefficients
    depend on the norms, they are arrays of all pairs, which leave the processor's cache (as measured)."""
    kernels, norms, _, angles = shape
    return 25 + kernels * angles * (2 if norms == 1 else 100)


class _Side:
    """One set of inputs: features, as directions and log-norms in float64."""

    def __init__(self, features: jax.Array):
        self.features = features
        squares = np.einsum("nd,nd->n", features, features, dtype=np.float64, casting="safe")
        self.usable = bool(np.all(np.isfinite(squares)) and np.all(squares > 1e-30))
        self.norms = np.log(squares) / 2 if self.usable else squares

    def directions(self, rows: Any) -> np.ndarray:
        return np.asarray(self.features)[rows].astype(np.float64) * np.exp(-self.norms[rows])[:, None]


def _matrices(sides: list[_Side], series: Series, dtype: np.dtype, which: list[int]) -> list[jax.Array]:
    """The kernels by the series, those of near pairs with their angle from the chord."""
    states = [_state(side, series, dtype, which) for side in sides]
    powers, in_powers = _in_powers(series.coefficients[which])
    coefficients = jnp.asarray(powers, dtype)
    *found, near = (_gram if len(sides) == 1 else _block)(*states, coefficients, in_powers)
    columns = np.flatnonzero(near)
    return _mended(found, columns, sides, series, which) if len(columns) else found


def _state(side: _Side, series: Series, dtype: np.dtype, which: list[int]) -> tuple[jax.Array, ...]:
    """What a pair reads of each input: direction, polynomials of its norm, scales."""
    unit = side.features * jnp.asarray(np.exp(-side.norms)[:, None], side.features.dtype)
    basis, scale = series.norm_basis(side.norms), series.scale(side.norms)[which].T
    return unit.astype(dtype), jnp.asarray(basis, dtype), jnp.asarray(scale, dtype)


def _in_powers(coefficients: np.ndarray) -> tuple[np.ndarray, bool]:
    """The series in powers of the angle's place, which cost half as much, where its terms do not cancel; and whether it is."""
    powers = coefficients @ _powers(coefficients.shape[-1])
    return (powers, True) if np.abs(powers).sum((1, 2, 3)).max() < 4 else (coefficients, False)


@functools.cache
def _powers(n: int) -> np.ndarray:
    """The coefficients of T_0 to T_(n-1), a row each."""
    return np.stack([np.pad(cheb2poly(row), (0, n))[:n] for row in np.eye(n)])


def _cosines(unit1: jax.Array, unit2: jax.Array) -> jax.Array:
    return lax.optimization_barrier(jnp.clip(jnp.matmul(unit1, unit2.T, precision="highest"), -1, 1))


@partial(jax.jit, static_argnames="in_powers")
def _block(first: Any, second: Any, coefficients: jax.Array, in_powers: bool) -> list[jax.Array]:
    """The kernels between two sets, and which of the second have a near one in the first."""

    def cosines(start: jax.Array, rows: int) -> jax.Array:
        return _cosines(lax.dynamic_slice_in_dim(first[0], start, rows), second[0])

    return _in_rows(cosines, first, second, coefficients, in_powers)


@partial(jax.jit, static_argnames="in_powers")
def _gram(state: Any, coefficients: jax.Array, in_powers: bool) -> list[jax.Array]:
    """The kernels of one set, exactly symmetric, because the cosines are; and which have a near one among the others."""
    unit = state[0]
    n = unit.shape[0]
    side = min(n, TILE)
    count = math.ceil(n / side)
    places = np.array([(i, j) for i in range(count) for j in range(i, count)])
    starts = jnp.asarray(np.minimum(places * side, n - side))  # the last tile overlaps the one before

    computed = _cosines(unit, unit)

    def mirror(k: jax.Array, whole: jax.Array) -> jax.Array:
        i, j = starts[k]
        part = lax.dynamic_slice(computed, (i, j), (side, side))
        upper = (i + np.arange(side))[:, None] <= (j + np.arange(side))
        part = jnp.where(upper | (i != j), part, part.T)
        return lax.dynamic_update_slice(lax.dynamic_update_slice(whole, part, (i, j)), part.T, (j, i))

    whole = lax.fori_loop(0, len(places), mirror, jnp.zeros_like(computed))
    whole = whole.at[np.arange(n), np.arange(n)].set(2)  # not near: an input with itself needs no second look

    def cosines(start: jax.Array, rows: int) -> jax.Array:
        return lax.dynamic_slice_in_dim(whole, start, rows)

    *kernels, near = _in_rows(cosines, state, state, coefficients, in_powers, marked=True)
    if coefficients.shape[1] > 1:  # sums over the norms of x and x' round in another way than the other way round
        kernels = [jnp.where(np.tri(n, dtype=bool), k, k.T) for k in kernels]
    return [*kernels, near]


def _in_rows(
    cosines: Callable[[jax.Array, int], jax.Array], first: Any, second: Any, coefficients: jax.Array, in_powers: bool,
    marked: bool = False,
) -> list[jax.Array]:  # fmt: skip
    """The kernels, some rows at a time, which stay in the cache; and which columns have a near pair. marked: a cosine of 2
    is one of 1 that does not count as near."""
    (_, basis1, scale1), (_, basis2, scale2) = first, second
    n1, n2 = basis1.shape[0], basis2.shape[0]
    kernels, norms, _, angles = coefficients.shape
    rows = max(1, min(n1, (LARGE if norms == 1 else CACHED // angles) // n2))

    def some(start: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        basis, scale = (lax.dynamic_slice_in_dim(a, start, rows) for a in (basis1, scale1))
        cosine = cosines(start, rows)
        size = jnp.abs(cosine)
        near = _near(jnp.where(size > 1, 0, size) if marked else size)
        cosine = jnp.minimum(cosine, 1) if marked else cosine
        place = angle(cosine, jnp.sqrt((1 - cosine) * (1 + cosine))) * (2 / math.pi) - 1
        place = lax.optimization_barrier(place)
        found = [
            scale[:, m, None] * scale2[:, m] * _sum(_terms(coefficients[m], basis, basis2), place, in_powers)
            for m in range(kernels)
        ]
        return found, near

    if rows == n1:  # no loop: cores share large operations, but not those of a loop that write into a part
        found, near = some(jnp.zeros((), int))
        return [*found, near]

    def step(k: jax.Array, done: Any) -> Any:
        start = jnp.minimum(k * rows, n1 - rows)  # the last rows overlap the ones before
        found, near = some(start)
        *whole, before = done
        placed = [lax.dynamic_update_slice_in_dim(w, f, start, 0) for w, f in zip(whole, found, strict=True)]
        return [*placed, before | near]

    empty = [*(jnp.zeros((n1, n2), basis1.dtype) for _ in range(kernels)), jnp.zeros(n2, bool)]
    return lax.fori_loop(0, math.ceil(n1 / rows), step, empty)


def _near(size: jax.Array) -> jax.Array:
    """Which columns of absolute cosines have a pair that nearly coincides or is nearly opposite."""
    eighth = len(size) // 8  # maxima of whole blocks first: they run along memory
    folded = functools.reduce(jnp.maximum, [size[k * eighth : (k + 1) * eighth] for k in range(8)])
    largest = jnp.maximum(jnp.max(folded, axis=0, initial=0), jnp.max(size[8 * eighth :], axis=0, initial=0))
    return largest > 1 - NEAR[np.dtype(size.dtype)]


def _terms(coefficients: jax.Array, basis1: jax.Array, basis2: jax.Array) -> jax.Array:
    """The coefficients by the angle: numbers, or for each pair (n, N1, N2)."""
    if coefficients.shape[0] == 1:
        return coefficients[0, 0]
    norms, _, angles = coefficients.shape
    rows, columns = len(basis1), len(basis2)
    left = jnp.matmul(basis1, coefficients.reshape(norms, -1), precision="highest").reshape(rows, norms, angles)
    left = left.transpose(2, 0, 1).reshape(-1, norms)  # one product of matrices for all
    return lax.optimization_barrier(jnp.matmul(left, basis2.T, precision="highest")).reshape(angles, rows, columns)


def _sum(terms: jax.Array, x: jax.Array, in_powers: bool) -> jax.Array:
    """sum_d terms[d] x^d by Horner's rule, or sum_d terms[d] T_d(x) by Clenshaw's."""
    after = now = jnp.zeros_like(x)
    for d in range(len(terms) - 1, 0, -1):
        after, now = now, (x * (now + terms[d]) if in_powers else 2 * x * now - after + terms[d])
    return now + terms[0] if in_powers else x * now - after + terms[0]


def _mended(
    found: list[jax.Array], columns: np.ndarray, sides: list[_Side], series: Series, which: list[int]
) -> list[jax.Array]:
    """With the pairs that nearly coincide, or are nearly opposite, computed again from their distance, which tells the angle."""
    first, second = sides[0], sides[-1]
    limit = 1 - NEAR[np.dtype(found[0].dtype)]
    out = [np.array(k) for k in found]
    others = first.directions(slice(None))
    for part in np.array_split(columns, math.ceil(len(columns) * len(others) / 2**22)):
        own = second.directions(part)
        cosine = others @ own.T
        near = np.abs(cosine) > limit
        if len(sides) == 1:
            near &= np.arange(len(others))[:, None] < part
        i, at = np.nonzero(near)
        for start in range(0, len(i), 2**14):
            here = slice(start, start + 2**14)
            a, b, j = i[here], at[here], part[at[here]]
            sign = np.where(cosine[a, b] < 0, -1.0, 1.0)
            turn = 2 * np.arcsin(np.minimum(np.linalg.norm(others[a] - sign[:, None] * own[b], axis=1) / 2, 1))
            values = series(first.norms[a], second.norms[j], np.where(sign < 0, math.pi - turn, turn))
            for k, whole in zip(which, out, strict=True):
                whole[a, j] = values[k]
                if len(sides) == 1:
                    whole[j, a] = values[k]
    return [jnp.asarray(k) for k in out]
