"""Closed forms where they keep their digits, quadrature where they do not.

Where a function is all but linear (ELU at tiny variances) or all but a step (hard tanh at huge ones), the normal integrals of
its closed form are far larger than their sum. When the form is derived it is compared, in single precision, with
quadrature between the kinks, on which nothing cancels; beyond the variances where it holds, quadrature answers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules import heads, panels, special
from ntk_rules.chunks import broadcasting, elementwise
from ntk_rules.errors import Declined
from ntk_rules.factors import Factor, factor_of, piecewise, separated
from ntk_rules.interpreted import by_numpy
from ntk_rules.method import Compute, Entry, Method, by_correlations
from ntk_rules.numeric import Part, conditioned, line_parts, plane_pair, standard_deviation
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.wedges import AGREED, ORDERS, Value, Wedges, mean_wedges, meets, preferred, reach

_VARIANCES = 10.0 ** (np.arange(-24, 17) / 2)
_ONE = 24  # the place of variance 1
_CORRELATIONS = np.array([0.5, -0.9, 1.0, -1.0])
# Of single precision, relative to the scale of the answer; double precision loses as many digits of its own.
_LOST32, _LOST64, _AGREED = 1e-6, 5e-4, 2e-6
_CHUNK = 16
_UNDERFLOW = 1e-30  # scales below say nothing about rounding: densities far out, which single precision has not


@dataclass(frozen=True)
class Range:
    """Variances between which a closed form is good in single, and in double precision."""

    single: tuple[float, float]
    double: tuple[float, float]

    def holds(self, variance: jax.Array) -> jax.Array:
        """Whether the closed form is to be taken; at zero variance nothing is lost."""
        low, high = self.double if special.is_double(variance) else self.single
        return ((variance >= low) & (variance <= high)) | (variance <= 0)


def kept_accurate(question: Question, method: Method) -> Method:
    """`method`, a closed form, with quadrature where it loses its digits; itself where it loses none or none is known to."""
    if question.parameters or method.formula is None or not method.formula.has(*heads.CANCELLING):
        return method
    try:
        by_quadrature = _by_quadrature(question)
    except Declined:
        return method
    entries = by_quadrature.entries
    if method.needs != entries:
        return method

    def closed(*arrays: jax.Array) -> jax.Array:
        return method.compute(dict(zip(entries, arrays, strict=True)), ())

    def closed_once(*arrays: jax.Array) -> jax.Array:
        return (method.once or method.compute)(dict(zip(entries, arrays, strict=True)), ())

    found, quadrature = _range(closed_once, by_quadrature)
    if found is None:
        return method
    value = _by_range(closed, quadrature, found)

    def compute(covariances: dict[Entry, jax.Array], parameters: tuple[jax.Array, ...]) -> jax.Array:
        return value(*(jnp.asarray(covariances[e]) for e in entries))

    (low, high), (lower, higher) = found.single, found.double
    step = (
        f"variances beyond {low:g} .. {high:g} (float32), {lower:g} .. {higher:g} (float64): "
        "the closed form loses digits, Gauss-Legendre between the kinks does not"
    )
    return replace(
        method,
        compute=compute,
        steps=(*method.steps, step),
        estimate=_estimate(method, question, entries, found, compute),
    )


def _estimate(
    method: Method, question: Question, entries: tuple[Entry, ...], where: Range, compute: Compute
) -> Compute:  # fmt: skip
    """The error of the closed form where it holds, that of the quadrature elsewhere."""

    @functools.cache
    def parts() -> list[Part]:
        return _all_parts(question)

    moves = by_correlations(compute, entries)

    @jax.jit
    def estimate(covariances: dict[Entry, jax.Array], parameters: tuple[jax.Array, ...]) -> jax.Array:
        good = where.holds(covariances[entries[0]]) & where.holds(covariances[entries[-1]])
        usual = method.error(covariances, parameters)
        arrays = jnp.broadcast_arrays(*(covariances[e] for e in entries))
        known = {e: x.reshape(-1) for e, x in zip(entries, arrays, strict=True)}
        other = sum(part.error(known, parameters)[0] for part in parts())
        other = jnp.reshape(jnp.broadcast_to(other, (arrays[0].size,)), arrays[0].shape)
        return jnp.where(good, usual, other + moves(covariances, parameters))

    return estimate


def _all_parts(question: Question) -> list[Part]:
    """The quadrature of `_by_quadrature` with its errors."""
    factors = _factors(question)
    parts = _off_the_plane(factors, question)
    if len(factors) == 2 and all(f.regular != 0 for f in factors):
        left, right = (piecewise(f.regular, f.index, question).resolved() for f in factors)
        parts.append(plane_pair(left, right, *(f.index for f in factors)))
    return parts


def _factors(question: Question) -> list[Factor]:
    """One or two functions of one Gaussian each, or Declined."""
    coefficient, groups = separated(question)
    if not 1 <= len(groups) <= 2:
        raise Declined(f"{len(groups)} Gaussians occur")
    order = sorted(groups)
    return [factor_of(groups[i] * (coefficient if i == order[0] else 1), i, question) for i in order]


def _off_the_plane(factors: list[Factor], question: Question) -> list[Part]:
    """What is no integral in the plane: all of one Gaussian, or the delta functions of two."""
    if len(factors) == 1:
        return line_parts(factors[0], question)
    f, g = factors
    parts = [part for d in f.deltas for part in conditioned(d, f.index, g, question)]
    return parts + [part for d in g.deltas for part in conditioned(d, g.index, replace(f, deltas=()), question)]


@dataclass(frozen=True)
class Quadrature:
    """The entries read, the expectation as a function of one-dimensional arrays of them, and its scale.

    wedges: another way to the same, for moderate variances, where there is one.
    """

    entries: tuple[Entry, ...]
    value: Value
    scale: Value
    wedges: Value | None


def _by_quadrature(question: Question) -> Quadrature:
    """The expectation by quadrature between the kinks, or Declined."""
    factors = _factors(question)
    order = [f.index for f in factors]
    sizes = [_size(f, question) for f in factors]
    planes: list[Value] = []
    parts = _off_the_plane(factors, question)
    entries: tuple[Entry, ...] = ((order[0], order[0]),)
    if len(order) == 2:
        (i, j), (f, g) = order, factors
        entries = ((i, i), (i, j), (j, j))
        if f.regular != 0 and g.regular != 0:
            left, right = (piecewise(h.regular, h.index, question) for h in (f, g))
            planes = [panels.mean_two(left.resolved(), right.resolved())]
            planes += [mean_wedges(left, right, ORDERS[0])] if meets(left, right) else []
    if not parts and not planes:
        raise Declined("nothing is left to integrate")

    def summed(plane: Value | None) -> Value:
        def value(*arrays: jax.Array) -> jax.Array:
            known = dict(zip(entries, arrays, strict=True))
            total = sum((p.compute(known, ()) for p in parts), jnp.zeros_like(arrays[0]))
            return total if plane is None else total + plane(*_standardised(*arrays))

        return value

    def scale(*arrays: jax.Array) -> jax.Array:
        known = dict(zip(entries, arrays, strict=True))
        return math.prod((size(known[(i, i)]) for size, i in zip(sizes, order, strict=True)), start=jnp.ones(()))

    by_wedges = summed(planes[1]) if len(planes) == 2 else None
    return Quadrature(entries, summed(planes[0] if planes else None), scale, by_wedges)


def _standardised(q_u: jax.Array, c: jax.Array, q_v: jax.Array) -> tuple[jax.Array, ...]:
    """Both standard deviations, the correlation and its sine."""
    return standard_deviation(q_u), standard_deviation(q_v), *special.correlation(q_u, q_v, c)


def _size(f: Factor, question: Question) -> Callable[[jax.Array], jax.Array]:
    """The size of a factor as a function of the variance q: E[f^2]^(1/2) of what is regular; of a delta function of order n, by which
    its expectations are bounded where what it meets varies with q^(1/2), its density there over q^(n/2).
    """
    regular = piecewise(f.regular, f.index, question).resolved() if f.regular != 0 else None
    z = gaussian_symbols(question.gaussians)[f.index]
    deltas = [(float(d.place), d.order, abs(float(d.weight.xreplace({z: d.place})))) for d in f.deltas]

    def size(variance: jax.Array) -> jax.Array:
        std, total = standard_deviation(variance), jnp.zeros_like(variance)
        if regular is not None:
            squared = regular.mapped(lambda function: lambda *z: function(*z) ** 2)
            total = jnp.sqrt(panels.mean_one(squared, total, std, ()))
        for place, order, weight in deltas:
            total = total + weight * panels.density(place / std) / std ** (order + 1)
        return total

    return size


def _range(closed: Value, quadrature: Quadrature) -> tuple[Range | None, Value]:
    """The range of a closed form, None when it is good wherever quadrature is, and the quadrature to be taken outside."""
    shape = (_VARIANCES.size, _CORRELATIONS.size)
    q = np.broadcast_to(_VARIANCES[:, None], shape)
    law = [x.reshape(-1) for x in ([q] if len(quadrature.entries) == 1 else [q, q * _CORRELATIONS, q])]

    def probe(single: list[jax.Array], double: list[jax.Array]) -> tuple[jax.Array, ...]:
        wedges = [quadrature.wedges(*a) for a in (single, double)] if quadrature.wedges else []
        return quadrature.value(*double), quadrature.scale(*double), closed(*single), quadrature.value(*single), *wedges

    with jax.enable_x64(True):
        found = by_numpy(probe)([x.astype(np.float32) for x in law], law)
    exact, size, ours, theirs, *wedges = (np.broadcast_to(np.asarray(x, float), q.size) for x in found)
    # Where two delta functions meet, the answer is larger than the sizes of its factors allow for.
    size = np.fmax(size, np.abs(exact))
    lost, apart = (_worst(x, exact, size) for x in (ours, theirs))
    usable = apart <= np.maximum(_AGREED, lost)
    single_range, double_range = (_around_one(lost <= limit, usable) for limit in (_LOST32, _LOST64))
    if single_range == double_range == (0.0, np.inf):
        return None, quadrature.value
    limits = [0.0, 0.0]
    if wedges:
        small = slice(
            _ONE + 3, None, -1
        )  # variances falling from about 30: those far below lose what single precision cannot hold
        *tables, want, scale = (x.reshape(shape)[small] for x in (*wedges, exact, size))
        limits = [reach(t, want, scale, a, _VARIANCES[small].tolist()) for t, a in zip(tables, AGREED, strict=True)]
    return Range(single_range, double_range), _with_wedges(quadrature, *limits)


def _with_wedges(quadrature: Quadrature, single: float, double: float) -> Value:
    """Quadrature by wedges up to these variances, by panels beyond."""
    if quadrature.wedges is None or max(single, double) == 0:
        return quadrature.value
    rule = Wedges(quadrature.wedges, single, double)
    return preferred(lambda *a: rule.hold(jnp.maximum(a[0], a[-1])), quadrature.wedges, quadrature.value)


def _worst(value: np.ndarray, exact: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The largest relative error over the correlations, infinite where there is no number."""
    with np.errstate(all="ignore"):
        relative = np.where((value == exact) | (size < _UNDERFLOW), 0, np.abs(value - exact) / size)
    relative = np.where(np.isfinite(relative), relative, np.inf)
    return relative.reshape(_VARIANCES.size, -1).max(axis=1)


def _around_one(good: np.ndarray, usable: np.ndarray) -> tuple[float, float]:
    """The variances about 1 that are good, as far as all that lies beyond them is better left to quadrature."""
    if not good[_ONE]:
        return 0.0, np.inf
    above = next((k for k in range(_ONE, good.size) if not good[k]), good.size)
    below = next((k for k in range(_ONE, -1, -1) if not good[k]), -1)
    high = float(_VARIANCES[above - 1]) if above < good.size and usable[above:].all() else np.inf
    low = float(_VARIANCES[below + 1]) if below >= 0 and usable[: below + 1].all() else 0.0
    return low, high


def _by_range(closed: Value, quadrature: Value, where: Range) -> Value:
    """The closed form, and quadrature on those slices of the arrays that hold a variance out of its range."""

    def inside(*arrays: jax.Array) -> jax.Array:
        return where.holds(arrays[0]) & where.holds(arrays[-1])

    def slice_value(*rows: jax.Array) -> jax.Array:
        return jax.lax.cond(jnp.all(inside(*rows)), lambda *a: jnp.zeros_like(a[0]), quadrature, *rows)

    sliced = elementwise(slice_value, _CHUNK)

    return broadcasting(preferred(inside, closed, sliced))
