"""Quadrature for functions with kinks: split at the kinks, Gauss-Legendre on every panel.

On each panel the integrand is analytic, so convergence is geometric in the number of nodes. The kinks sit at
(kink - mean)/std of the standardised Gaussian, which only run time knows: panels move with the variances.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import special
from ntk_rules.functions import differences_kept, to_jax
from ntk_rules.pieces import Piece
from ntk_rules.roundings import rounding_of

Parameters = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Rule:
    """Nodes per panel, reach in standard deviations, and the highest Hermite order resolved."""

    nodes: int
    reach: float
    orders: int


LINE64, LINE32 = Rule(320, 13.0, 768), Rule(256, 9.0, 768)
PLANE64, PLANE32 = Rule(64, 9.0, 0), Rule(24, 6.0, 0)
SHARP = 0.5  # the scale on which a function has its transition at a kink
SHELL = 0.5  # the depth of the outermost shells, see `beyond`
_OVER, _BELL = 32, 6  # exp(-32), and exp(-6^2), are beyond working precision


def line_rule(x: jax.Array) -> Rule:
    """The one-dimensional rule for the dtype of `x`."""
    return LINE64 if special.is_double(x) else LINE32


class Piecewise:
    """A function of one Gaussian, smooth between kinks: its pieces as JAX functions of (z, *parameters)."""

    def __init__(self, pieces: tuple[Piece, ...], z: sp.Symbol, parameters: tuple[sp.Symbol, ...]):
        self.pieces, self.z, self.parameters = pieces, z, parameters
        self.kinks = [to_jax(p.low, parameters) for p in pieces[1:]]
        written = [differences_kept(p.expr) for p in pieces]
        self.functions = [to_jax(expr, (z, *parameters)) for expr in written]
        self.roundings = [rounding_of(expr, (z, *parameters)) for expr in written]

    def mapped(self, change: Callable[..., Callable[..., jax.Array]]) -> Piecewise:
        """The same kinks with every piece changed by `change`."""
        out = object.__new__(Piecewise)
        out.pieces, out.z, out.parameters = self.pieces, self.z, self.parameters
        out.kinks, out.roundings = self.kinks, self.roundings
        out.functions = [change(f) for f in self.functions]
        return out

    def resolved(self) -> Piecewise:
        """The same cut besides where functions have their transitions, and the outermost pieces where their exponentials are over: at
        huge variances all of that is close to the kink, where no panel of a few standard deviations sees it.
        """
        if self.parameters:
            return self
        first, last = self.pieces[0], self.pieces[-1]
        cuts = set() if first is last else {first.high - x for x in _ends(first.expr, self.z)}
        cuts |= set() if first is last else {last.low + x for x in _ends(last.expr, self.z)}
        cuts |= {place for piece in self.pieces for place in _transitions(piece.expr, self.z)}
        cut = [part for piece in self.pieces for part in _cut_at(piece, cuts)]
        return self if len(cut) == len(self.pieces) else Piecewise(tuple(cut), self.z, ())

    def rounded(self) -> Piecewise:
        """How far the values of the formula are off by its own rounding, as a function with the same kinks."""
        out = self.mapped(lambda f: f)
        out.functions = self.roundings
        return out

    def edges(self, mean: jax.Array, std: jax.Array, parameters: Parameters, reach: float) -> list[jax.Array]:
        """The panel edges in the standardised variable, clipped to [-reach, reach], ends included."""
        shape = jnp.broadcast_shapes(mean.shape, std.shape, *(p.shape for p in parameters))
        zero = std == 0
        inner = []
        for kink in self.kinks:
            place = kink(*parameters)
            gap = place - mean
            # Without spread the kink is on one side, or halfway where only rounding parts it from the mean: that must not decide,
            # as the compiler rounds differently from one use of an edge to the next.
            on_it = jnp.abs(gap) <= 16 * jnp.finfo(std.dtype).eps * (jnp.abs(place) + jnp.abs(mean))
            scaled = jnp.where(zero, jnp.where(on_it, 0, jnp.sign(gap)) * reach, gap / jnp.where(zero, 1, std))
            inner.append(jnp.broadcast_to(jnp.clip(scaled, -reach, reach), shape).astype(std.dtype))
        ends = [jnp.full(shape, e, std.dtype) for e in (-reach, reach)]
        return [ends[0], *inner, ends[1]]

    def samples(
        self, mean: jax.Array, std: jax.Array, parameters: Parameters, rule: Rule, fine: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """(nodes x, weight times f(mean + std x)) on all panels, the node axis last; no density factor.

        Every piece is evaluated where it holds alone: a panel out of reach is empty, but exp may overflow there. fine: do nodes of the outer
        panels lie dense at the kinks, on the scale of f?
        """
        edges = self.edges(mean, std, parameters, rule.reach)
        inner = tuple(p[..., None] for p in parameters)
        ends: list[jax.Array | float] = [-jnp.inf, *(kink(*inner) for kink in self.kinks), jnp.inf]
        xs, values = [], []
        for k, f in enumerate(self.functions):
            outward = {0: -1, len(self.kinks): 1}.get(k) if fine and self.kinks else None
            if outward is None:
                x, weights = panel(edges[k], edges[k + 1], rule.nodes)
            else:
                start, length = edges[k + 1] if outward < 0 else edges[k], edges[k + 1] - edges[k]
                distance, weights = graded(length, SHARP / jnp.maximum(std, SHARP), special.gauss_legendre(rule.nodes))
                x = start[..., None] + outward * distance
            xs.append(x)
            values.append(weights * f(jnp.clip(mean[..., None] + std[..., None] * x, ends[k], ends[k + 1]), *inner))
        return jnp.concatenate(xs, -1), jnp.concatenate(values, -1)


def _ends(expr: sp.Expr, z: sp.Symbol) -> list[sp.Expr]:
    """How far from the kink the fastest and the slowest function of `expr` have run their course."""
    slopes = {sp.diff(f.args[0], z) for f in expr.atoms(sp.Function) if f.has(z)}
    ends = sorted({_OVER / abs(a) if a.is_number and a != 0 else sp.Integer(_OVER) for a in slopes}, key=float)
    return [ends[0], ends[-1]] if len(ends) > 1 else ends


def _transitions(expr: sp.Expr, z: sp.Symbol) -> set[sp.Expr]:
    """Where its error functions and Gaussians are in their middle, begin and are over."""
    places: set[sp.Expr] = set()
    for f in expr.atoms(sp.erf, sp.erfc, sp.exp):
        if not f.args[0].is_polynomial(z):
            continue
        *higher, slope, offset = sp.Poly(f.args[0], z).all_coeffs() if f.has(z) else (sp.S.Zero, sp.S.Zero)
        if isinstance(f, sp.exp) and len(higher) == 1 and higher[0].is_negative:
            middle, width = -slope / (2 * higher[0]), 1 / sp.sqrt(-higher[0])
        elif not isinstance(f, sp.exp) and not higher and slope.is_number and slope != 0:
            middle, width = -offset / slope, 1 / abs(slope)
        else:
            continue
        places |= {middle + k * width for k in (-_BELL, 0, _BELL)}
    return places


def _cut_at(piece: Piece, cuts: set[sp.Expr]) -> list[Piece]:
    inside = sorted((c for c in cuts if float(piece.low) < float(c) < float(piece.high)), key=float)
    ends = [piece.low, *inside, piece.high]
    return [Piece(low, high, piece.expr) for low, high in itertools.pairwise(ends)]


def panel(low: jax.Array, high: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Gauss-Legendre nodes and weights between `low` and `high`, the node axis last."""
    nodes, weights = (t.astype(low.dtype) for t in special.gauss_legendre(n))
    width = (high - low)[..., None]
    return low[..., None] + width * nodes, width * weights


def graded(length: jax.Array, scale: jax.Array, rule: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    """(distances from one end of a panel, weights), the node axis last: dense on `scale` there, and evenly spread from 1 on.

    The distance log(1 + b (e^t - 1)) grows exponentially in t from the scale b and linearly from 1 on. It is analytic for
    |Im t| < pi, so that Gauss-Legendre in t converges geometrically; the range of t grows with log(1/b) alone.
    """
    nodes, weights = (t.astype(length.dtype) for t in rule)
    length, scale = length[..., None], scale[..., None]
    span = jnp.log1p(jnp.expm1(length) / scale)
    grown = scale * jnp.expm1(span * nodes)
    return jnp.log1p(grown), span * weights * (grown + scale) / (1 + grown)


def density(x: jax.Array) -> jax.Array:
    """The standard normal density."""
    return jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def mean_one(
    f: Piecewise, mean: jax.Array, std: jax.Array, parameters: Parameters, thin: int = 1, shell: float = 0
) -> jax.Array:  # fmt: skip
    """E[f(mean + std x)]; `thin` divides the number of nodes; of the outermost nodes alone if `shell` is their depth."""
    rule = line_rule(std)
    rule = Rule(rule.nodes // (2 * thin), rule.reach, 0)
    x, values = f.samples(mean, std, parameters, rule, fine=True)
    if shell:
        values = jnp.where(jnp.abs(x) > rule.reach - shell, values, 0)
    return jnp.sum(density(x) * values, axis=-1)


def beyond(outermost: jax.Array, both: jax.Array) -> jax.Array:
    """What a positive integrand has beyond the reach of the rule, from its outermost shell and that with the next one.

    Where shells fall, they fall ever faster, so that a geometric series bounds what follows; where the outermost is not
    less than a third of the next, the integrand lies out of reach, and nothing bounds it.
    """
    before = both - outermost
    ratio = jnp.where(outermost == 0, 0, outermost / jnp.where(before == 0, jnp.finfo(both.dtype).tiny, before))
    return jnp.where(ratio > 0.3, jnp.inf, outermost * ratio / (1 - jnp.minimum(ratio, 0.5)))


def coefficients(f: Piecewise, s: jax.Array, parameters: Parameters, thin: int = 1) -> jax.Array:
    """Hermite coefficients E[f(s x) h_k(x)], order axis first, by a scan over the recurrence of the h_k."""
    rule = line_rule(s)
    x, values = f.samples(jnp.zeros_like(s), s, parameters, Rule(rule.nodes // thin, rule.reach, 0))
    return _moments(x, values * jnp.exp(-x * x / 4) / math.sqrt(2 * math.pi), rule.orders)


@functools.partial(jax.jit, static_argnums=2)
def _moments(x: jax.Array, values: jax.Array, orders: int) -> jax.Array:
    """sum_i values_i h_k(x_i) exp(-x_i^2/4), order axis first; jitted like `smooth.hermite_rows`."""
    roots = jnp.sqrt(jnp.arange(orders + 1, dtype=x.dtype))

    def step(state, k):
        previous, current = state
        following = (x * current - roots[k] * previous) / roots[k + 1]
        return (current, following), jnp.sum(values * current, axis=-1)

    start = (jnp.zeros_like(x), jnp.exp(-x * x / 4))
    return jax.lax.scan(step, start, jnp.arange(orders))[1]


def mean_two(f: Piecewise, g: Piecewise, thin: int = 1) -> Callable[..., jax.Array]:
    """E[f(s_u x) g(s_v (rho x + w y))] as a function of one-dimensional arrays (s_u, s_v, rho, w,
    *parameters).

    Outer panels end at the kinks of f and, for every kink of g, at the place where it is met and 1
    inner reach to either side: across that transition the inner integral varies on the scale w.
    """

    def value(s_u, s_v, rho, w, *parameters):
        rule = PLANE64 if special.is_double(s_u) else PLANE32
        n, reach = rule.nodes // thin, rule.reach
        outer = f.edges(jnp.zeros_like(s_u), s_u, parameters, reach)[1:-1]
        places = g.edges(jnp.zeros_like(s_v), s_v, parameters, 1e6)[1:-1]
        flat = jnp.abs(rho) < 1e-3
        slope = jnp.where(flat, 1, rho)
        for place in places:
            for side in (-reach, 0.0, reach):
                outer.append(jnp.where(flat, reach, jnp.clip((place - side * w) / slope, -reach, reach)))
        ends = [jnp.full_like(s_u, -reach), jnp.full_like(s_u, reach)]
        edges = jnp.sort(jnp.stack([ends[0], *outer, ends[1]]), axis=0)
        x, weights = panel(edges[:-1], edges[1:], n)  # (panels, elements, n)
        x, weights = (jnp.moveaxis(t, 1, 0).reshape(s_u.size, -1) for t in (x, weights))
        wide = tuple(p[:, None] for p in parameters)
        inner_rule = Rule(n, reach, 0)
        y, inner = g.samples((s_v * rho)[:, None] * x, jnp.broadcast_to((s_v * w)[:, None], x.shape), wide, inner_rule)
        inner = jnp.sum(density(y) * inner, axis=-1)
        return jnp.sum(weights * density(x) * _select(f, s_u[:, None] * x, wide) * inner, axis=-1)

    return value


def _select(f: Piecewise, z: jax.Array, parameters: Parameters) -> jax.Array:
    """f(z): the piece that z falls into, each piece evaluated only where it holds."""
    total = f.functions[0](jnp.minimum(z, f.kinks[0](*parameters)) if f.kinks else z, *parameters)
    for k, kink in enumerate(f.kinks):
        low = kink(*parameters)
        high = f.kinks[k + 1](*parameters) if k + 1 < len(f.kinks) else jnp.inf
        total = jnp.where(z > low, f.functions[k + 1](jnp.clip(z, low, high), *parameters), total)
    return total
