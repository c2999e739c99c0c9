"""Second moments of tangents and of gradients where what they are multiplied with has to be sampled: exact in their own Gaussians.

A tangent u = sum_g s_g g is linear in the Gaussians g of primed weights (a gradient in those of the readout's), with slopes s_g
that are functions of the network's own variables, and independent of all g. So

    E[u v] = sum_{g, h} E[s_g s_h] E[g h]

and the slopes alone are left to sample. That leaves less noise; and as the tangent program and the adjoint program ask for the slopes
of the same functions, with the same points, both come to the same sums of the same numbers (`passes.methods`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import sympy

from tensorprog.ir import (
    Const,
    Literal,
    MatMul,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.phi import identity
from tensorprog.kernel.fields import LEAST_TOLERANCE
from tensorprog.kernel.graph import Operand, Quantity, is_zero
from tensorprog.kernel.population import population_of
from tensorprog.kernel.questions import Second, Work, ask, combine, contract, sizes_of
from tensorprog.passes.fuse import fuse_nodes
from tensorprog.passes.layouts import links_of
from tensorprog.passes.slopes import Slopes, is_leaf
from tensorprog.passes.structure import Structure

__all__ = ["linear_of"]

MOST_PAIRS = 100  # of Gaussians; more are sampled together
MOST_PAIRS_AT_PLACES = (
    256  # the same of Gaussians at their places: each has an expectation of its own, and code of its own
)
MOST_GAUSSIANS = 40  # of a tangent; four steps of an LSTM have 32
FEW = 2  # Gaussians of a slope that is written out in them
MOST_PLACES = 16  # positions of a Gaussian that are mixed


@dataclass(frozen=True)
class _Part:
    """One Gaussian of a tangent, at one of the places that are mixed: its slope, and the letters of its axes. whole: at all places."""

    gaussian: Node
    whole: Node
    slope: Node
    letters: str


def linear_of(q: Second, facts: Structure, tolerance: float | None) -> Work[Quantity | None]:
    """E[u v] by the slopes; None where it is no such question, one of too many parts, or where nothing may be sampled."""
    if tolerance is None or tolerance < LEAST_TOLERANCE or not (facts[q.u].odd and facts[q.v].odd):
        return None
    first, second = _parts(q.u, q.lu, facts), _parts(q.v, q.lv, facts)
    if first is None or second is None:
        return None
    pairs = [(g, h) for g in first for h in second if not facts.uncorrelated(g.gaussian, h.gaussian, q.cross)]
    if len(pairs) > MOST_PAIRS_AT_PLACES or len({(g.whole, h.whole) for g, h in pairs}) > MOST_PAIRS:
        return None
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    every = "".join(dict.fromkeys(c for c in q.lu + q.lv if c != "1" and sizes[c] > 1))
    shape = tuple(sizes[c] for c in q.out)
    terms = []
    for g, h in pairs:
        own = "".join(c for c in every if c in g.letters + h.letters)
        covariance = yield from ask(g.gaussian, g.letters, h.gaussian, h.letters, own, q.cross)
        if is_zero(covariance):
            continue
        slopes = yield from _of_slopes(g.slope, h.slope, replace(q, out=every), facts, tolerance)
        out = "".join(c for c in q.out if sizes[c] > 1)
        made = contract(f"{every},{own}->{out}", [Operand(slopes), Operand(covariance)], shape, q.cross)
        terms.append((1.0, made))
    return combine(terms, shape, q.cross)


def _of_slopes(s: Node, t: Node, q: Second, facts: Structure, tolerance: float | None) -> Work[Quantity]:
    """E[s t], in a form that does not depend on the order in which the chain rule was applied: as functions of their Gaussians, of few
    of them; by the population, of many. Where there are positions, they are asked for as they are."""
    kinds = [_Kind.of(x) for x in (s, t)]
    if not q.out and not any(kind.mixes for kind in kinds):
        if all(kind.count <= FEW for kind in kinds):
            s, t = (_fused(x) for x in (s, t))
        elif s.type.kind == t.type.kind == "vector":
            return (yield from population_of(replace(q, u=s, v=t), tolerance))
    return (yield from ask(s, q.lu, t, q.lv, q.out, q.cross))


@dataclass(frozen=True)
class _Kind:
    """How many Gaussians a slope is a function of, and whether it mixes their positions."""

    count: int
    mixes: bool

    @classmethod
    def of(cls, slope: Node) -> _Kind:
        read = (o for node in topological([slope], skip=is_leaf) for o in operands(node) if o.type.kind == "vector")
        gaussians = list(dict.fromkeys(o for o in read if is_leaf(o)))
        links = [links_of(slope, g) or () for g in gaussians]
        mixes = any(
            k is None and n > 1
            for g, own in zip(gaussians, links, strict=True)
            for k, n in zip(own, g.type.shape, strict=False)
        )
        return cls(len(gaussians), mixes)


def _fused(slope: Node) -> Node:
    """One function of Gaussians."""
    if slope.type.kind != "vector" or is_leaf(slope):
        return slope
    whole = Nonlin(identity, (slope,), (), source=slope.source)
    return fuse_nodes([whole], frozenset(), True, states=frozenset())[whole]


def _parts(u: Node, letters: str, facts: Structure) -> list[_Part] | None:
    found, gaussians = [], list(_gaussians(u, facts))
    if len(gaussians) > MOST_GAUSSIANS:
        return None
    for g in gaussians:
        links = links_of(u, g)
        if links is None:
            continue
        mixed = [i for i, (link, n) in enumerate(zip(links, g.type.shape, strict=True)) if link is None and n > 1]
        if math.prod(g.type.shape[i] for i in mixed) > MOST_PLACES:
            return None
        own = "".join("1" if link is None else letters[link] for link in links)
        for place in itertools.product(*(range(g.type.shape[i]) for i in mixed)):
            at = dict(zip(mixed, place, strict=True))
            seed = np.zeros(g.type.shape)
            seed[tuple(at.get(i, slice(None)) for i in range(seed.ndim))] = 1.0
            slope = Slopes(g, Const(Literal.of(seed)), _plain)[u]
            if slope is None:
                continue
            if slope.type.kind == "vector" and facts[slope].odd is not False:
                return None
            found.append(_Part(_cut(g, at), g, slope, own))
    return found


def _plain(phi: Phi, i: int, where: str) -> sympy.Expr:
    """The slope in what a function is linear in."""
    return phi.diff(i)


def _gaussians(u: Node, facts: Structure) -> Iterator[MatMul | Weight]:
    """Those that it is linear in."""
    if is_leaf(u):
        return iter([u])  # type: ignore[list-item]
    read = (o for node in topological([u], skip=is_leaf) for o in operands(node) if o.type.kind == "vector")
    return iter(dict.fromkeys(o for o in read if is_leaf(o) and facts[o].odd))  # type: ignore[misc]


def _cut(g: Node, at: dict[int, int]) -> Node:
    """The Gaussian at some places of the axes that are mixed."""
    if not at:
        return g
    shape = g.type.shape
    start, stop = (
        tuple(at.get(i, 0) for i in range(len(shape))),
        tuple(at[i] + 1 if i in at else n for i, n in enumerate(shape)),
    )
    op = position("slice", start=start, stop=stop, stride=(1,) * len(shape))
    return PositionMap(op, (g,), Type("vector", op.shape(shape), g.type.axis, g.type.width), source=g.source)
