"""The last tiers: functions that mix Gaussians and have no closed form.

Two Gaussians and no kink: the trapezoidal rule in the whitened plane. Anything else: randomised
quasi-Monte Carlo,
a rank-1 lattice under random shifts with the baker's transformation (P. L'Ecuyer, C. Lemieux, "Recent
advances in
randomized quasi-Monte Carlo methods", 2002; generating vector of R. Cools, F. Kuo, D. Nuyens, SIAM J.
Sci. Comput. 28,
2006). The spread between the shifts is the standard error; the seed is fixed, so values are reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.scipy.special import ndtri

from ntk_rules import special
from ntk_rules.chunks import elementwise
from ntk_rules.functions import JUMPING, to_jax
from ntk_rules.interpreted import by_numpy
from ntk_rules.method import Declined, Entry, Method, by_correlations
from ntk_rules.numeric import unknown_functions
from ntk_rules.panels import SHELL, beyond
from ntk_rules.pieces import has_kinks
from ntk_rules.probes import DEFAULT_TOLERANCE, admissible, up_to
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.roundings import rounding_of
from ntk_rules.sampling import no_mean
from ntk_rules.smooth import refined_error

_GENERATOR = (
    1, 182667, 469891, 498753, 110745, 446247, 250185, 118627, 245333, 283199, 408519, 391023, 246327, 126539,
    399185, 461527, 300343, 69681, 516695, 436179, 106383, 238523, 413283, 70841, 47719, 300129, 113029,
    123925,
    410745, 211325, 17489, 511893, 40767, 186077, 519471, 255369, 101819, 243573, 66189, 152143, 503455,
    113217,
)  # fmt: skip
SEED, SHIFTS, POINTS = 20, 8, 2048
TRIALS = 2**16  # of the tails
BEST = 1e-5  # no tolerance below this is tried
_PARAMETERS = np.array([1.0, 0.37, -0.61])  # at which the standard error is seen: at a single value F may be constant


def _mixed(question: Question) -> tuple[int, ...]:
    if question.expr is None:
        raise Declined("only the normal form is known")
    if question.expr.has(sp.DiracDelta):
        raise Declined("a delta function of several Gaussians")
    zs = gaussian_symbols(question.gaussians)
    return tuple(i for i, z in enumerate(zs) if question.expr.has(z))


def _needs(used: tuple[int, ...], question: Question) -> tuple[Entry, ...]:
    pairs = combinations_with_replacement(used, 2)
    return tuple(sorted(p for p in pairs if p not in question.independent))


def cholesky(covariances: dict[Entry, jax.Array], used: tuple[int, ...]) -> list[list[jax.Array]]:
    """The lower Cholesky factor, elementwise; directions of zero or negative rounding variance give zeros."""
    rows: list[list[jax.Array]] = []
    for a, i in enumerate(used):
        row: list[jax.Array] = []
        for b, j in enumerate(used[:a]):
            rest = covariances.get((j, i), 0.0) - sum(row[k] * rows[b][k] for k in range(b))
            row.append(rest * special.reciprocal(rows[b][b]))
        rest = covariances[(i, i)] - sum(x * x for x in row)
        row.append(jnp.sqrt(jnp.maximum(rest, 0)) if a == 0 else _root(rest, covariances[(i, i)]))
        rows.append(row)
    return rows


def _root(rest: jax.Array, variance: jax.Array) -> jax.Array:
    floor = 4 * jnp.finfo(rest.dtype).eps * variance
    safe = rest > floor
    return jnp.where(safe, jnp.sqrt(jnp.where(safe, rest, 1)), 0)


def plane(question: Question) -> Method:
    """E[F(u, v)], F smooth: trapezoidal rule in both whitened coordinates."""
    used = _mixed(question)
    if len(used) != 2:
        raise Declined(f"{len(used)} Gaussians occur")
    if has_kinks(question.expr):
        raise Declined("there are kinks")
    zs = gaussian_symbols(question.gaussians)
    function = to_jax(question.expr, (*(zs[i] for i in used), *question.parameter_symbols()))
    needs = _needs(used, question)

    def grid_sum(function: Callable[..., jax.Array], thin: int, shell: float = 0) -> Callable[..., jax.Array]:
        def value(*arrays):
            known = dict(zip(needs, arrays, strict=False))
            double = special.is_double(arrays[0])
            reach = 9.0 if double else 6.0
            x, weights = _trapezoid(reach, (192 if double else 64) // thin, arrays[0].dtype)
            rows = cholesky(known, used)
            u = rows[0][0][:, None, None] * x[:, None]
            v = rows[1][0][:, None, None] * x[:, None] + rows[1][1][:, None, None] * x
            values = function(u, v, *(p[:, None, None] for p in arrays[len(needs) :]))
            if shell:
                values = jnp.where(jnp.maximum(jnp.abs(x)[:, None], jnp.abs(x)) > reach - shell, jnp.abs(values), 0)
            return jnp.einsum("nij,i,j->n", values, weights, weights, precision=jax.lax.Precision.HIGHEST)

        return elementwise(value, 64)

    sums = [grid_sum(function, thin) for thin in (1, 2, 4)]
    rounding = grid_sum(rounding_of(question.expr, (*(zs[i] for i in used), *question.parameter_symbols())), 1)
    plain = sums[0]
    square, shells = grid_sum(lambda *a: function(*a) ** 2, 1), [grid_sum(function, 1, d * SHELL) for d in (1, 2)]

    def arrays_of(covariances, parameters):
        return (*(covariances[e] for e in needs), *parameters)

    def error(covariances, parameters):
        arrays = arrays_of(covariances, parameters)
        scale = jnp.sqrt(square(*arrays))
        fine, coarse, coarser = (grid(*arrays) for grid in sums)
        off = refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        return off + rounding(*arrays) + beyond(*(shell(*arrays) for shell in shells)), scale

    bound, how_far = admissible(error, needs, question)
    words = up_to(how_far["reach"])
    moves = by_correlations(lambda c, p: plain(*arrays_of(c, p)), needs)
    step = "smooth function of two Gaussians: trapezoidal rule in the whitened plane"
    return Method(
        "plane quadrature", needs, lambda c, p: plain(*arrays_of(c, p)), (step, *unknown_functions(question)), None, bound, words,
        lambda c, p: error(c, p)[0] + moves(c, p), **how_far,
    )  # fmt: skip


def _trapezoid(reach: float, n: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    x = np.linspace(-reach, reach, n + 1)
    weights = (x[1] - x[0]) * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return jnp.asarray(x, dtype), jnp.asarray(weights, dtype)


def quasi_monte_carlo(question: Question) -> Method:
    """Anything at all: shifted lattices, with a standard error."""
    used = _mixed(question)
    if not 1 <= len(used) <= len(_GENERATOR):
        raise Declined(f"{len(used)} Gaussians occur, at most {len(_GENERATOR)} are allowed")
    wanted = question.tolerance or DEFAULT_TOLERANCE
    jumps = question.expr is not None and question.expr.has(*JUMPING)  # its derivative is not that of the samples
    zs = gaussian_symbols(question.gaussians)
    function = to_jax(question.expr, (*(zs[i] for i in used), *question.parameter_symbols()))
    needs = _needs(used, question)

    def shift_means(*arrays):
        known, parameters = dict(zip(needs, arrays, strict=False)), arrays[len(needs) :]
        rows = cholesky(known, used)

        def one_shift(shift):
            x = _normal_points(shift, len(used), arrays[0].dtype)
            z = [sum(c[..., None] * x[:, k] for k, c in enumerate(row)) for row in rows]
            return jnp.mean(function(*z, *(p[..., None] for p in parameters)), axis=-1)

        return jax.lax.map(one_shift, jnp.arange(SHIFTS))

    def value(*arrays):
        return jnp.mean(shift_means(*arrays), axis=0)

    def spread(*arrays):
        return jnp.std(shift_means(*arrays), axis=0, ddof=1) / math.sqrt(SHIFTS)

    def arrays_of(covariances, parameters):
        return jnp.broadcast_arrays(*(covariances[e] for e in needs), *parameters)

    chunked = {name: elementwise(f, 16) for name, f in (("value", value), ("spread", spread))}
    _refuse_heavy_tails(function, len(used), question)
    reached = _probe(chunked["spread"], needs, question)
    if not np.isfinite(reached):
        raise Declined("the values are not finite")
    if not max(reached, BEST) <= wanted:
        raise Declined(
            f"reaches {reached:.1e} at unit variances, wanted {wanted:.1e}; a tolerance above that, and of {BEST:.0e} at least, "
            "accepts it"
        )
    step = f"randomised quasi-Monte Carlo: {SHIFTS} random shifts of a lattice of {POINTS} points, seed {SEED}"
    return Method(
        "quasi-Monte Carlo", needs, lambda c, p: chunked["value"](*arrays_of(c, p)), (step, *unknown_functions(question)), None, reached,
        "three standard errors at unit variances, correlations 0.5 (an estimate); `error` has the local one",
        lambda c, p: 3 * chunked["spread"](*arrays_of(c, p)), pathwise=None if jumps else lambda c, p: value(*arrays_of(c, p)),
    )  # fmt: skip


def _refuse_heavy_tails(function: Callable[..., jax.Array], dimension: int, question: Question) -> None:
    """Decline where single points carry the sum: the expectation is infinite, or out of sampling's reach."""
    given = (np.ones(()),) * question.parameters

    def at_points() -> jax.Array:
        return function(*_normal_points(jnp.asarray(0), dimension, jnp.dtype(float)).T, *given)

    with jax.enable_x64(True):
        size = np.abs(by_numpy(at_points)())
    size = np.broadcast_to(size, POINTS)
    if not np.isfinite(size).all() or size.max() > 0.2 * size.sum():
        raise Declined("a few samples dominate the sum: the expectation is infinite or beyond sampling")
    if dimension == 2 and not question.independent:  # of an input with itself, where both are one
        with jax.enable_x64(True):
            z = np.random.default_rng(SEED).standard_normal(TRIALS)
            both = np.abs(by_numpy(function)(z, z, *given))
        if no_mean(np.broadcast_to(both, TRIALS)[:, None]):
            raise Declined(
                "where both Gaussians are one a few samples dominate the sum: the expectation is infinite or beyond sampling"
            )


def _normal_points(shift: jax.Array, dimension: int, dtype: jnp.dtype) -> jax.Array:
    """(POINTS, dimension) standard normal points: a shifted lattice, folded, through the inverse normal
    cdf.
    """
    moves = np.random.default_rng(SEED).random((SHIFTS, dimension))
    lattice = np.outer(np.arange(POINTS), np.asarray(_GENERATOR[:dimension]) % POINTS) / POINTS % 1.0
    points = (jnp.asarray(lattice, dtype) + jnp.asarray(moves, dtype)[shift]) % 1
    folded = 1 - jnp.abs(2 * points - 1)
    small = jnp.finfo(dtype).eps / 2
    return ndtri(jnp.clip(folded, small, 1 - small))


def _probe(spread: Callable[..., jax.Array], needs: tuple[Entry, ...], question: Question) -> float:
    with jax.enable_x64(True):
        arrays = [np.full(len(_PARAMETERS), 1.0 if i == j else 0.5) for i, j in needs]
        given = [np.abs(_PARAMETERS) if positive else _PARAMETERS for positive in question.signs]
        return 3 * float(np.max(by_numpy(spread)(*arrays, *given)))
