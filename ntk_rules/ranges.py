"""Closed forms where they keep their digits, quadrature where they do not.

Where a function is all but linear (ELU at tiny variances) or all but a step (hard tanh at huge ones), the normal integrals of
its closed form are far larger than their sum. When the form is derived it is compared, in single precision, with
quadrature between the kinks, on which nothing cancels; beyond the variances where it holds, quadrature answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules import heads, panels, special
from ntk_rules.chunks import broadcasting, elementwise
from ntk_rules.factors import Factor, factor_of, piecewise, separated
from ntk_rules.method import Declined, Entry, Method
from ntk_rules.numeric import Part, conditioned, line_parts, standard_deviation
from ntk_rules.question import Question, gaussian_symbols

_CANCELLING = (heads.NormalCdf, heads.ScaledCdf, heads.BivariateCdf)
_VARIANCES = 10.0 ** (np.arange(-24, 17) / 2)
_ONE = 24  # the place of variance 1
_CORRELATIONS = np.array([0.5, -0.9, 1.0, -1.0])
# Of single precision, relative to the scale of the answer; double precision loses as many digits of its own.
_LOST32, _LOST64, _AGREED = 1e-6, 5e-4, 2e-6
_CHUNK = 16
_UNDERFLOW = 1e-30  # scales below say nothing about rounding: densities far out, which single precision has not
Value = Callable[..., jax.Array]


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
    if question.parameters or method.formula is None or not method.formula.has(*_CANCELLING):
        return method
    try:
        entries, quadrature, scale = _by_quadrature(question)
    except Declined:
        return method
    if method.needs != entries:
        return method

    def closed(*arrays: jax.Array) -> jax.Array:
        return method.compute(dict(zip(entries, arrays, strict=True)), ())

    def closed_once(*arrays: jax.Array) -> jax.Array:
        return (method.once or method.compute)(dict(zip(entries, arrays, strict=True)), ())

    found = _range(closed_once, quadrature, scale, len(entries))
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
    return replace(method, compute=compute, steps=(*method.steps, step))


def _by_quadrature(question: Question) -> tuple[tuple[Entry, ...], Value, Value]:
    """(entries read, the expectation as a function of one-dimensional arrays of them, its scale), or Declined."""
    coefficient, groups = separated(question)
    if not 1 <= len(groups) <= 2:
        raise Declined(f"{len(groups)} Gaussians occur")
    order = sorted(groups)
    factors = [factor_of(groups[i] * (coefficient if i == order[0] else 1), i, question) for i in order]
    if len(order) == 1:
        entries: tuple[Entry, ...] = ((order[0], order[0]),)
        parts = line_parts(factors[0], question)
    else:
        (i, j), (f, g) = order, factors
        entries = ((i, i), (i, j), (j, j))
        parts = [_plane(f, g, question)] if f.regular != 0 and g.regular != 0 else []
        parts += [part for d in f.deltas for part in conditioned(d, i, g, question)]
        parts += [part for d in g.deltas for part in conditioned(d, j, replace(f, deltas=()), question)]
    if not parts:
        raise Declined("nothing is left to integrate")

    sizes = [_size(f, question) for f in factors]

    def value(*arrays: jax.Array) -> jax.Array:
        known = dict(zip(entries, arrays, strict=True))
        return sum((p.compute(known, ()) for p in parts), jnp.zeros_like(arrays[0]))

    def scale(*arrays: jax.Array) -> jax.Array:
        known = dict(zip(entries, arrays, strict=True))
        return math.prod((size(known[(i, i)]) for size, i in zip(sizes, order, strict=True)), start=jnp.ones(()))

    return entries, value, scale


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


def _plane(f: Factor, g: Factor, question: Question) -> Part:
    """The part without delta functions, split at the kinks in both Gaussians."""
    (i, left), (j, right) = ((h.index, piecewise(h.regular, h.index, question).resolved()) for h in (f, g))
    plane = panels.mean_two(left, right)

    def compute(law: dict[Entry, jax.Array], _: tuple[jax.Array, ...]) -> jax.Array:
        rho, w = special.correlation(law[(i, i)], law[(j, j)], law[(i, j)])
        return plane(standard_deviation(law[(i, i)]), standard_deviation(law[(j, j)]), rho, w)

    return Part(compute, lambda law, _: (jnp.zeros(()), jnp.zeros(())), "")


def _range(closed: Value, quadrature: Value, scale: Value, entries: int) -> Range | None:
    """The range of a closed form, or None when it is good wherever quadrature is."""
    laws = [np.broadcast_to(q[:, None], (q.size, _CORRELATIONS.size)) for q in (_VARIANCES,)]
    law = laws if entries == 1 else [laws[0], laws[0] * _CORRELATIONS, laws[0]]
    with jax.enable_x64(True):
        single, double = ([jnp.asarray(x.reshape(-1), t) for x in law] for t in (jnp.float32, jnp.float64))
        exact, size = _once(lambda *a: (quadrature(*a), scale(*a)), *double)
        ours, theirs = _once(lambda *a: (closed(*a), quadrature(*a)), *single)
    # Where two delta functions meet, the answer is larger than the sizes of its factors allow for.
    size = np.fmax(np.asarray(size), np.abs(np.asarray(exact)))
    lost, apart = (_worst(np.asarray(x, float), np.asarray(exact), size) for x in (ours, theirs))
    usable = apart <= np.maximum(_AGREED, lost)
    single_range, double_range = (_around_one(lost <= limit, usable) for limit in (_LOST32, _LOST64))
    everywhere = (0.0, np.inf)
    return None if single_range == double_range == everywhere else Range(single_range, double_range)


def _once(function: Callable[..., tuple[jax.Array, jax.Array]], *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Its values, compiled for a single use: quickly, to slow code."""
    return jax.jit(function).lower(*arrays).compile(compiler_options={"xla_backend_optimization_level": "0"})(*arrays)


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

    def value(*arrays: jax.Array) -> jax.Array:
        good, usual = inside(*arrays), closed(*arrays)
        other = jax.lax.cond(jnp.all(good), lambda *a: jnp.zeros_like(usual), sliced, *arrays)
        return jnp.where(good, usual, other)

    return broadcasting(value)
