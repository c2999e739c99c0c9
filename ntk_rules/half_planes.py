"""Quadrature in the plane for functions that are smooth on the regions between straight lines.

In whitened coordinates (x, y) a line is {m.(x, y) = d}, m of length 1. The plane is turned so that the inner direction keeps
away from all lines (at K lines by an angle of pi/(2K) or more): the inner integral, cut at the lines, is then an analytic
function of the outer coordinate between the places where lines cross, and Gauss-Legendre converges geometrically in both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import special
from ntk_rules.functions import to_jax
from ntk_rules.panels import SHELL, Rule, beyond, density, line_rule, panel
from ntk_rules.regions import Line, Split, Tree, lines

Leaf = Callable[..., jax.Array]
# Panels end at -reach, -_NEAR, 0, _NEAR, reach at least: most of the weight lies in the short ones.
_RULE64, _RULE32, _NEAR = Rule(40, 11.0, 0), Rule(16, 7.0, 0), 2.5


@dataclass(frozen=True)
class Frame:
    """Standard deviations, correlation and its sine: u = s_u x, v = s_v (rho x + w y); arrays of one shape (n,)."""

    s_u: jax.Array
    s_v: jax.Array
    rho: jax.Array
    w: jax.Array

    def point(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(u, v) at x, y, whose node axes come behind the axis of elements."""
        s_u, s_v, rho, w = (t.reshape(t.shape + (1,) * (x.ndim - 1)) for t in (self.s_u, self.s_v, self.rho, self.w))
        return s_u * x, s_v * (rho * x + w * y)


@dataclass(frozen=True)
class Edge:
    """A line in whitened coordinates: unit normal (x, y), distance from 0, standard deviation of the affine function.

    `inside`: the affine function is constant and zero; halfway between the two sides is then meant.
    """

    x: jax.Array
    y: jax.Array
    distance: jax.Array
    size: jax.Array
    inside: jax.Array


class HalfPlanes:
    """A tree of regions as JAX functions of (u, v, *arguments)."""

    def __init__(
        self, tree: Tree, zs: tuple[sp.Symbol, ...], arguments: tuple[sp.Symbol, ...], meaning: Callable[..., Leaf] = to_jax
    ):  # fmt: skip
        """meaning: what a leaf stands for, its value or (`rounding_of`) how far that is off."""
        self.tree, self.lines, self._meaning = tree, lines(tree), meaning
        self._leaves: dict[sp.Expr, Leaf] = {}
        self._compile(tree, (*zs, *arguments))
        self._edges = {line: _edge_of(line, arguments) for line in self.lines}

    def _compile(self, tree: Tree, symbols: tuple[sp.Symbol, ...]) -> None:
        if isinstance(tree, Split):
            self._compile(tree.positive, symbols)
            self._compile(tree.negative, symbols)
        elif tree not in self._leaves:
            self._leaves[tree] = self._meaning(tree, symbols)

    def edges(self, frame: Frame, arguments: tuple[jax.Array, ...]) -> dict[Line, Edge]:
        """Every line in whitened coordinates."""
        return {line: edge(frame, arguments) for line, edge in self._edges.items()}

    def at(
        self, u: jax.Array, v: jax.Array, arguments: tuple[jax.Array, ...], sides: dict[Line, jax.Array], edges: dict[Line, Edge]
    ) -> jax.Array:  # fmt: skip
        """The value at (u, v), where `sides` says on which side of each line that is."""
        wide = tuple(_behind(a, u.ndim) for a in arguments)

        def value(tree: Tree) -> jax.Array:
            if not isinstance(tree, Split):
                return jnp.broadcast_to(self._leaves[tree](u, v, *wide), u.shape)
            positive, negative = value(tree.positive), value(tree.negative)
            chosen = jnp.where(sides[tree.line], positive, negative)
            return jnp.where(_behind(edges[tree.line].inside, u.ndim), (positive + negative) / 2, chosen)

        return value(self.tree)


def _behind(a: jax.Array, ndim: int) -> jax.Array:
    return a.reshape(a.shape + (1,) * (ndim - 1))


def _edge_of(line: Line, arguments: tuple[sp.Symbol, ...]) -> Callable[[Frame, tuple[jax.Array, ...]], Edge]:
    slope, offset = [to_jax(a, arguments) for a in line.slope], to_jax(line.offset, arguments)

    def edge(frame: Frame, values: tuple[jax.Array, ...]) -> Edge:
        shape, dtype = frame.rho.shape, frame.rho.dtype
        a, b, c = (jnp.broadcast_to(f(*values), shape).astype(dtype) for f in (*slope, offset))
        x, y = a * frame.s_u + b * frame.s_v * frame.rho, b * frame.s_v * frame.w
        size = jnp.hypot(x, y)
        constant = size <= 8 * jnp.finfo(dtype).eps * (jnp.abs(a) * frame.s_u + jnp.abs(b) * frame.s_v)
        safe = jnp.where(constant, 1, size)
        distance = jnp.where(constant, jnp.sign(c) * 1e6, jnp.clip(c / safe, -1e6, 1e6))
        unit = jnp.where(constant, 1, x / safe), jnp.where(constant, 0, y / safe)
        return Edge(*unit, distance, jnp.where(constant, 0, size), constant & (c == 0))

    return edge


def mean(f: HalfPlanes, thin: int) -> Callable[..., jax.Array]:
    """E[f] as a function of one-dimensional arrays (s_u, s_v, rho, w, *arguments)."""
    return _integral(f, thin, lambda values, inner, outer, reach: values)


def mean_square(f: HalfPlanes) -> Callable[..., jax.Array]:
    """E[f^2] likewise."""
    return _integral(f, 1, lambda values, inner, outer, reach: values * values)


def tail(f: HalfPlanes) -> Callable[..., jax.Array]:
    """A bound of E[|f|] beyond the reach of the panels, likewise; infinite where there is none."""

    def shell(values: jax.Array, inner: jax.Array, outer: jax.Array, reach: float) -> jax.Array:
        place = jnp.maximum(jnp.abs(inner), jnp.abs(outer)[..., None])
        return jnp.stack([jnp.where(place > reach - depth * SHELL, jnp.abs(values), 0) for depth in (1, 2)])

    return _integral(f, 1, shell, lambda shells: beyond(shells[0], shells[1]))


def _integral(
    f: HalfPlanes, thin: int, change: Callable[..., jax.Array], finish: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Callable[..., jax.Array]:  # fmt: skip
    @jax.jit
    def value(s_u, s_v, rho, w, *arguments):
        frame = Frame(s_u, s_v, rho, w)
        rule = _RULE64 if special.is_double(rho) else _RULE32
        n, reach = rule.nodes // thin, rule.reach
        edges = f.edges(frame, arguments)
        along, across = _turned(list(edges.values()))
        seen = {line: (e.x * along[0] + e.y * along[1], e.x * across[0] + e.y * across[1]) for line, e in edges.items()}
        start = {line: edges[line].distance / seen[line][1] for line in edges}
        drift = {line: seen[line][0] / seen[line][1] for line in edges}
        crossings = [
            _ratio(start[i] - start[j], drift[i] - drift[j], reach) for i, j in itertools.combinations(edges, 2)
        ]
        outer, outer_weights = _nodes(crossings, jnp.zeros_like(rho), n, reach)
        places = {line: start[line][:, None] - drift[line][:, None] * outer for line in edges}
        inner, inner_weights = _nodes(list(places.values()), jnp.zeros_like(outer), n, reach)
        sides = {line: (inner > places[line][..., None]) == (seen[line][1] > 0)[:, None, None] for line in edges}
        x, y = (along[k][:, None, None] * outer[..., None] + across[k][:, None, None] * inner for k in (0, 1))
        values = change(f.at(*frame.point(x, y), arguments, sides, edges), inner, outer, reach)
        sums = jnp.sum(inner_weights * density(inner) * values, axis=-1)
        return finish(jnp.sum(outer_weights * density(outer) * sums, axis=-1))

    return value


def _turned(edges: list[Edge]) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The outer direction, amid the widest gap between the lines' normals, and the inner one, at a right angle to it."""
    angles = jnp.sort(jnp.stack([jnp.arctan2(e.y, e.x) % math.pi for e in edges]), axis=0)
    gaps = jnp.concatenate([angles[1:], angles[:1] + math.pi]) - angles
    widest = jnp.argmax(gaps, axis=0)[None]
    middle = (jnp.take_along_axis(angles, widest, 0) + jnp.take_along_axis(gaps, widest, 0) / 2)[0]
    cosine, sine = jnp.cos(middle), jnp.sin(middle)
    return (cosine, sine), (-sine, cosine)


def _ratio(top: jax.Array, bottom: jax.Array, far: float) -> jax.Array:
    flat = bottom == 0
    return jnp.where(flat, far, top / jnp.where(flat, 1, bottom))


def _nodes(cuts: list[jax.Array], like: jax.Array, n: int, reach: float) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights of panels between the fixed ends and `cuts`, behind the axes of `like`, which is zero."""
    inside = _sorted([like - _NEAR, like, like + _NEAR, *(jnp.clip(cut, -reach, reach) for cut in cuts)])
    edges = jnp.stack([like - reach, *inside, like + reach], axis=-1)
    x, weights = panel(edges[..., :-1], edges[..., 1:], n)
    return x.reshape(*like.shape, -1), weights.reshape(*like.shape, -1)


def _sorted(arrays: list[jax.Array]) -> list[jax.Array]:
    """Sorted elementwise, by insertion: a handful of arrays, for which XLA's sort is slow."""
    ordered: list[jax.Array] = []
    for a in arrays:
        for k, b in enumerate(ordered):
            ordered[k], a = jnp.minimum(a, b), jnp.maximum(a, b)
        ordered.append(a)
    return ordered


def mean_on_line(
    f: HalfPlanes, line: Line, symbols: tuple[sp.Symbol, ...], change: Callable[[jax.Array], jax.Array], thin: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(density of the line's affine function at 0, E[change(f)] given that it is 0), a function of (s_u, s_v, rho, w, *arguments)."""
    own = _edge_of(line, symbols)

    @jax.jit
    def value(s_u, s_v, rho, w, *values):
        frame = Frame(s_u, s_v, rho, w)
        rule = line_rule(rho)
        rule = Rule(rule.nodes // (2 * thin), rule.reach, 0)
        here, edges = own(frame, values), f.edges(frame, values)
        weight = density(here.distance) * special.reciprocal(here.size)
        distance = jnp.clip(here.distance, -40, 40)
        cuts, sides, met = {}, {}, {}
        for other, e in edges.items():
            cross, gap = here.x * e.y - here.y * e.x, e.distance - distance * (here.x * e.x + here.y * e.y)
            parallel = jnp.abs(cross) < 8 * jnp.finfo(cross.dtype).eps
            cuts[other] = jnp.where(parallel, rule.reach, gap / jnp.where(parallel, 1, cross))
            met[other] = (cross, gap, parallel)
        t, weights = _nodes(list(cuts.values()), jnp.zeros_like(distance), rule.nodes, rule.reach)
        for other, (cross, gap, parallel) in met.items():
            beyond = (t > cuts[other][:, None]) == (cross > 0)[:, None]
            sides[other] = jnp.where(parallel[:, None], (gap < 0)[:, None], beyond)
            on = edges[other].inside | (parallel & (gap == 0))
            edges[other] = Edge(edges[other].x, edges[other].y, edges[other].distance, edges[other].size, on)
        x = distance[:, None] * here.x[:, None] - t * here.y[:, None]
        y = distance[:, None] * here.y[:, None] + t * here.x[:, None]
        inside = change(f.at(*frame.point(x, y), values, sides, edges))
        return weight, jnp.sum(weights * density(t) * inside, axis=-1)

    return value
