"""Expectations of functions that round to whole numbers: exact where they are stairs on a line, integrated where one Gaussian is left.

A stair is f(z) = c z + F(z) with F constant on every cell (`cells.py`): floor, round, the remainder of a division, whatever is made of these.
Of two of them, with F = F_0 + sum_m D_m 1[z beyond a_m], all is known but the joint law of the jumps:

    E[f(u) g(v)] = (c d + c E[G'] + d E[F']) Cov(u, v) + E[F(u) G(v)],     E[F'] = sum_m D_m p_u(a_m)     (Stein's lemma)
    E[F(u) G(v)] = E[F] E[G] + 1/(2 pi) int_0^arcsin(rho) sum_mn D_m D'_n
                                                    exp(-(x_m^2 + y_n^2 - 2 x_m y_n sin t) / (2 cos(t)^2)) dt

(Plackett's identity d P(u > a, v > b)/d rho = p(a, b), integrated as Drezner and Wesolowsky 1990 do), x_m = a_m / s_u, y_n = b_n / s_v.
In the logarithm of the angle to the diagonal the integrand is smooth at every scale, so that Gauss-Legendre converges geometrically
however close to 1 the correlation is. Jumps beyond `REACH64` (`REACH32`) standard deviations do not count; of infinitely many, those within a
window are known, and a variance that would reach beyond has no value: NaN, never a wrong number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ntk_rules import smooth, special
from ntk_rules.cells import MOST, Cells, cells_of
from ntk_rules.chunks import elementwise, in_slices
from ntk_rules.errors import Declined
from ntk_rules.evaluate import compile_formula
from ntk_rules.factors import separated
from ntk_rules.functions import to_jax
from ntk_rules.interpreted import by_numpy
from ntk_rules.method import Method, by_correlations
from ntk_rules.numeric import THIN, standard_deviation
from ntk_rules.panels import density, panel
from ntk_rules.probes import DEFAULT_TOLERANCE, up_to
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.switches import NotCuttable

__all__ = ["one_stepped", "two_stairs"]

REACH64, REACH32 = 9.5, 6.5  # standard deviations
NODES64, NODES32, EXTENT = 24, 12, 1.5  # on a stretch of the logarithm of the angle, and its length
_LINE = 28  # nodes on a panel of one Gaussian, which is no wider than a standard deviation
_BLOCK, _CHUNK = 8, 16
_LARGEST = 1e8  # variance


def _reach(x: jax.Array) -> float:
    return REACH64 if special.is_double(x) else REACH32


# ------------------------------------------------------------------------------------------ one Gaussian


def one_stepped(question: Question) -> Method:
    """E[f(z)], f smooth on cells: Gauss-Legendre on each."""
    coefficient, groups = separated(question)
    if len(groups) != 1:
        raise Declined(f"{len(groups)} Gaussians occur")
    ((i, expr),) = groups.items()
    cells, function = _cells(expr, i, question), to_jax(expr, (gaussian_symbols(question.gaussians)[i],))
    outside = compile_formula(coefficient, question.parameter_symbols())
    value, square = _mean(cells, function), _mean(cells, lambda z: function(z) ** 2)

    def error_and_scale(covariances, parameters):
        s, size = standard_deviation(covariances[(i, i)]), jnp.abs(outside(covariances, parameters))
        fine, coarse, coarser = (value(s, thin, 0.0) for thin in THIN)
        scale = jnp.sqrt(square(s, 1, 0.0))
        off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        return size * (off + jnp.abs(fine - value(s, 1, 0.5))), size * scale

    def compute(covariances, parameters, slices=elementwise):
        return outside(covariances, parameters) * value(standard_deviation(covariances[(i, i)]), 1, 0.0, slices)

    probe = lambda covariances, parameters: by_numpy(error_and_scale)(covariances, parameters)
    bound, how_far = _held(probe, ((i, i),), question, cells.window)
    step = f"one Gaussian: Gauss-Legendre between the jumps and kinks of {expr}{_known(cells)}"
    return Method(
        "one-dimensional quadrature", ((i, i),), compute, (step,), None, bound, up_to(how_far["reach"]),
        lambda c, p: error_and_scale(c, p)[0], pathwise=lambda c, p: compute(c, p, in_slices), **how_far,
    )  # fmt: skip


def _mean(cells: Cells, function: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """(s, thin, less) -> E[f(s x)] with fewer nodes, and less reach."""
    at_zero = lambda s: function(jnp.zeros_like(s))

    def value(s: jax.Array, thin: int, less: float) -> jax.Array:
        reach = _reach(s) - less
        places = jnp.asarray(cells.places, s.dtype)
        safe = jnp.where(s > 0, s, 1)[..., None]
        grid = np.linspace(-reach, reach, math.ceil(2 * reach) + 1)
        shape = (*s.shape, len(grid))
        kinks = jnp.clip(places / safe, -reach, reach)
        edges = jnp.sort(jnp.concatenate([kinks, jnp.broadcast_to(jnp.asarray(grid, s.dtype), shape)], -1), axis=-1)
        x, weights = panel(edges[..., :-1], edges[..., 1:], _LINE // thin)
        total = jnp.sum(weights * density(x) * function(safe[..., None] * x), axis=(-2, -1))
        total = jnp.where(reach * s <= cells.window, total, jnp.nan)
        return jnp.where(s == 0, at_zero(s), total)

    return lambda s, thin, less, slices=elementwise: slices(lambda flat: value(flat, thin, less), _CHUNK)(s)


def _held(
    error_at: Callable[..., tuple[jax.Array, jax.Array]], needs: tuple, question: Question, window: float, correlation: float = 0.0
) -> tuple[float, dict[str, Any]]:  # fmt: skip
    """(bound relative to the scale of the answer, how far it and errors of `NEAR` hold, as keywords of a Method), or Declined."""
    furthest = [min((window / reach) ** 2, _LARGEST) for reach in (REACH64, REACH32)]
    variances = (*(q for q in (furthest[0], 64.0, 16.0, 4.0, 1.0) if q <= furthest[0]), 0.3, 0.01)
    with jax.enable_x64(True):
        q = jnp.asarray(variances) * (1 - 1e-9)
        known = {e: q if e[0] == e[1] else correlation * q for e in needs}
        error, scale = map(np.asarray, error_at(known, tuple(jnp.ones_like(q) for _ in range(question.parameters))))
    relative = np.where(scale > 0, error / np.where(scale > 0, scale, 1), np.where(error > 0, np.inf, 0))
    worst = np.maximum.accumulate(np.where(np.isfinite(relative), relative, np.inf)[::-1])[::-1]
    wanted = question.tolerance or DEFAULT_TOLERANCE
    k = next((k for k, (q, r) in enumerate(zip(variances, worst, strict=True)) if r <= wanted and q >= 1 - 1e-9), None)
    if k is None:
        raise Declined(f"reaches {worst[variances.index(1.0)]:.1e} at variance 1, wanted {wanted:.1e}")
    near = tuple(furthest) if k == 0 else (variances[k], variances[k])
    return float(worst[k]), {"reach": variances[k], "near": near}


def _cells(expr: sp.Expr, i: int, question: Question) -> Cells:
    try:
        return cells_of(expr, gaussian_symbols(question.gaussians)[i])
    except NotCuttable as reason:
        raise Declined(str(reason)) from None


def _known(*cells: Cells) -> str:
    window = min(c.window for c in cells)
    return "" if math.isinf(window) else f", which are known up to {window:g}"


# ------------------------------------------------------------------------------------------ two Gaussians


@dataclass(frozen=True)
class Stair:
    """c z + F(z). places in order of their distance from zero; jumps: D_m, of the side away from zero against that towards it; base: F_0;
    at_zero: the value at zero as it is written."""

    slope: float
    places: np.ndarray
    jumps: np.ndarray
    base: float
    at_zero: float
    window: float


def stair_of(expr: sp.Expr, z: sp.Symbol) -> Stair:
    """The stair that a function is, or NotCuttable.

    >>> z = sp.Symbol("z", real=True)
    >>> from ntk_rules.functions import floor
    >>> half = stair_of(z - floor(z) / 2, z)
    >>> half.slope, half.places[:3].tolist(), half.jumps[:3].tolist(), half.base
    (1.0, [0.0, -1.0, 1.0], [-0.5, 0.5, -0.5], 0.5)
    """
    cells = cells_of(expr, z)
    slopes = {sp.diff(e, z) for e in cells.exprs}
    numbers = [float(a) for a in slopes if a.is_number and a.is_real]
    if len(numbers) < len(slopes) or max(numbers) - min(numbers) > 1e-14 * max(map(abs, numbers)):
        raise NotCuttable(f"between its jumps {expr} is no line of one slope")
    places = np.asarray(cells.places)
    heights = np.asarray([float(e.xreplace({z: sp.S.Zero})) for e in cells.exprs])
    below = int(np.sum(places < 0))
    jumps = np.diff(heights) * np.where(places >= 0, 1, -1)
    order = np.argsort(np.abs(places), kind="stable")
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        at_zero = float(to_jax(expr, (z,))(jnp.zeros(())))
    return Stair(numbers[0], places[order], jumps[order], float(heights[below]), at_zero, cells.window)


def two_stairs(question: Question) -> Method:
    """E[f(u) g(v)] of two stairs."""
    coefficient, groups = separated(question)
    if len(groups) != 2:
        raise Declined(f"{len(groups)} Gaussians occur")
    zs = gaussian_symbols(question.gaussians)
    (i, left), (j, right) = sorted(groups.items())
    try:
        f, g = stair_of(left, zs[i]), stair_of(right, zs[j])
    except NotCuttable as reason:
        raise Declined(str(reason)) from None
    needs = ((i, i), (i, j), (j, j)) if (i, j) not in question.independent else ((i, i), (j, j))
    outside = compile_formula(coefficient, question.parameter_symbols())
    value, moving = _pair(f, g, 1, 0.0), _pair(f, g, 1, 0.0, in_slices)

    def arrays(covariances):
        q_u, q_v = covariances[(i, i)], covariances[(j, j)]
        return q_u, covariances.get((i, j), jnp.zeros_like(q_u)), q_v

    def compute(covariances, parameters):
        return outside(covariances, parameters) * value(*arrays(covariances))

    def measured(slices: Callable) -> Callable:
        rules = [_pair(f, g, thin, less, slices) for thin, less in ((1, 0.0), (2, 0.0), (4, 0.0), (1, 0.5))]
        squares = [_pair(h, h, 1, 0.0, slices) for h in (f, g)]

        def error_and_scale(covariances, parameters):
            q_u, c, q_v = jnp.broadcast_arrays(*arrays(covariances))
            fine, coarse, coarser, near = (rule(q_u, c, q_v) for rule in rules)
            size = jnp.abs(outside(covariances, parameters))
            scale = jnp.sqrt(squares[0](q_u, q_u, q_u) * squares[1](q_v, q_v, q_v))
            off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
            return size * (off + jnp.abs(fine - near)), size * scale

        return error_and_scale

    window, error_and_scale = min(f.window, g.window), measured(elementwise)
    # A few numbers need no slices, and asked for as they are, sums over jumps are code that was compiled for other stairs.
    bound, how_far = _held(measured(in_slices), needs, question, window, 0.999)
    moves = by_correlations(compute, needs)
    step = "stairs: jumps one by one, Plackett's identity for pairs of them"
    step += "" if math.isinf(window) else f"; their places are known up to {window:g}"
    return Method(
        "sums over jumps", needs, compute, (step,), None, bound, up_to(how_far["reach"]),
        lambda c, p: error_and_scale(c, p)[0] + moves(c, p), pathwise=lambda c, p: outside(c, p) * moving(*arrays(c)), **how_far,
    )  # fmt: skip


def _pair(f: Stair, g: Stair, thin: int, less: float, slices: Callable = elementwise) -> Callable[..., jax.Array]:
    """E[f(u) g(v)] as a function of Var u, Cov(u, v), Var v. slices: `in_slices` where it is differentiated, or asked for eagerly."""

    def value(q_u: jax.Array, c: jax.Array, q_v: jax.Array) -> jax.Array:
        double = special.is_double(q_u)
        n = NODES64 if double else NODES32
        rule = np.stack(special.gauss_legendre(n // thin))
        rule = np.pad(rule, ((0, 0), (0, n - n // thin))).astype(q_u.dtype)  # as many nodes, for one compiled function
        return _pair_value(_arrays(f, q_u.dtype), _arrays(g, q_u.dtype), _reach(q_u) - less, rule, q_u, c, q_v)

    return slices(value, _CHUNK)


class _Arrays(NamedTuple):
    """A stair in arrays, which compiled functions share: padded to one size."""

    places: jax.Array | np.ndarray
    jumps: jax.Array | np.ndarray
    numbers: jax.Array | np.ndarray  # slope, base, at_zero, window


def _arrays(stair: Stair, dtype: jnp.dtype) -> _Arrays:
    count = -(-max(len(stair.places), 1) // MOST) * MOST
    places, jumps = (np.pad(a, (0, count - len(a))).astype(dtype) for a in (stair.places, stair.jumps))
    return _Arrays(places, jumps, np.asarray([stair.slope, stair.base, stair.at_zero, stair.window], dtype))


@jax.jit
def _pair_value(
    f: _Arrays, g: _Arrays, reach: float, rule: jax.Array, q_u: jax.Array, c: jax.Array, q_v: jax.Array
) -> jax.Array:  # fmt: skip
    rho, w = special.correlation(q_u, q_v, c)
    first, second = (_Side(a, standard_deviation(q), reach) for a, q in ((f, q_u), (g, q_v)))
    lines = f.numbers[0] * g.numbers[0] + f.numbers[0] * second.slope() + g.numbers[0] * first.slope()
    steps = first.mean() * second.mean() + _joint(first, second, rho, w, rule)
    flat = first.whole_mean() * second.whole_mean()
    return jnp.where((q_u <= 0) | (q_v <= 0), flat, lines * c + steps)


class _Side:
    """One stair at standard deviations s, a one-dimensional array."""

    def __init__(self, stair: _Arrays, s: jax.Array, reach: float):
        self.s, self.safe = s, jnp.where(s > 0, s, 1)[:, None]
        _, self.base, self.at_zero, window = stair.numbers
        self.known = reach * s <= window
        self.x = jnp.asarray(stair.places) / self.safe
        self.weights = jnp.where(jnp.abs(self.x) <= reach, stair.jumps, 0)
        self.sides = jnp.where(stair.places >= 0, 1, -1).astype(s.dtype)  # 1 where a jump is met going up
        met = (jnp.abs(stair.places) <= reach * jnp.max(jnp.where(self.known, s, 0))) & (stair.jumps != 0)
        last = jnp.max(jnp.where(met, jnp.arange(len(stair.places)), -1))
        self.blocks = (last + _BLOCK) // _BLOCK

    def mean(self) -> jax.Array:
        """E[F], NaN where more jumps are reached than are known."""
        tail = jnp.sum(self.weights * special.ndtr(-jnp.abs(self.x)), axis=-1)
        return jnp.where(self.known, self.base + tail, jnp.nan)

    def slope(self) -> jax.Array:
        """E[F']: the jumps times the density there."""
        return jnp.sum(self.sides * self.weights * density(self.x) / self.safe, axis=-1)

    def whole_mean(self) -> jax.Array:
        """E[f]."""
        return jnp.where(self.s == 0, self.at_zero, self.mean())

    def block(self, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Some of the places, their jumps away from zero, and their sides."""
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, k * _BLOCK, _BLOCK, axis=-1)
        return cut(self.x), cut(self.weights), cut(self.sides)


def _joint(first: _Side, second: _Side, rho: jax.Array, w: jax.Array, rule: jax.Array) -> jax.Array:
    """Cov(F(u), G(v)) from the jumps."""
    nodes, weights = rule
    sign = jnp.where(rho < 0, -1.0, 1.0).astype(rho.dtype)
    on = w <= 0
    extent = jnp.log(math.pi / 2 / jnp.arctan2(jnp.where(on, 1, w), jnp.where(on, 0, jnp.abs(rho))))
    extent = jnp.where(jnp.isnan(extent), 0, extent)  # one that is no number must not count for others
    stretches = jnp.ceil(jnp.max(extent) / EXTENT).astype(jnp.int32)

    def pair(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        apart_from_one, at_one = state
        x, jumps, side = first.block(k // second.blocks)
        y, others, across = second.block(k % second.blocks)
        y, across = sign[:, None] * y, sign[:, None] * across
        side = jnp.broadcast_to(side, x.shape)
        same = side[:, :, None] * across[:, None, :]  # 1 on one side of zero, -1 on opposite ones
        heights = jumps[:, :, None] * others[:, None, :]
        square = (x[:, :, None] - y[:, None, :])[..., None] ** 2 / 2
        level = (x[:, :, None] * y[:, None, :])[..., None]

        def stretch(m: jax.Array, total: jax.Array) -> jax.Array:
            low = jnp.minimum(m * EXTENT, extent)
            width = jnp.minimum((m + 1) * EXTENT, extent) - low
            angle = (math.pi / 2 * jnp.exp(-(low[:, None] + width[:, None] * nodes)))[:, None, None, :]
            exponent = square / jnp.sin(angle) ** 2 + level / (1 + jnp.cos(angle))
            inner = jnp.sum(jnp.exp(-exponent) * angle * weights, axis=-1) * width[:, None, None]
            return total + jnp.sum(heights * same * inner, axis=(1, 2))

        apart_from_one = jax.lax.fori_loop(0, stretches, stretch, apart_from_one)
        tails = special.ndtr(-jnp.abs(x))[:, :, None] * special.ndtr(-jnp.abs(y))[:, None, :]
        both = jnp.where(same > 0, special.ndtr(-jnp.maximum(jnp.abs(x)[:, :, None], jnp.abs(y)[:, None, :])), 0)
        return apart_from_one, at_one + jnp.sum(heights * (both - tails), axis=(1, 2))

    zero = jnp.zeros_like(rho)
    apart_from_one, at_one = jax.lax.fori_loop(0, first.blocks * second.blocks, pair, (zero, zero))
    return jnp.where(on, at_one, apart_from_one / (2 * math.pi))
