"""Second moments of tangents and of gradients that have to be sampled, path by path: the form in which both programs ask for the same.

A tangent is a sum over the paths of the chain rule, each a product F L G .. g of slopes and of linear maps of positions, with a Gaussian g
of the primed weights at its end; a gradient is a sum over the same paths, run through from the other end. Where one slope is all that
stands on either path,

    E[(F g) (F' g')] = E[F F'] E[g g']

and only the slopes are sampled, each pair with the Gaussians that they read and no others. So both programs sample the same functions
of the same Gaussians, at the same points, whichever of the two asks for more of the pairs. Several slopes along a path, as a norm
or a softmax over positions has them, are sampled together, exactly in the Gaussians at the ends (`kernel.fields`).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import sympy

from tensorprog.ir import LinComb, Node, Nonlin, Phi, PositionMap, Type, position
from tensorprog.ir.phi import vector
from tensorprog.kernel.fields import field_of, read_by
from tensorprog.kernel.graph import Operand, Quantity, is_zero
from tensorprog.kernel.positions import original
from tensorprog.kernel.questions import LETTERS, Mean, Second, Value, Work, ask, combine, contract, sizes_of
from tensorprog.kernel.sums import function_of
from tensorprog.passes.structure import Structure

__all__ = ["by_paths", "slopes_of"]

MOST_PATHS = 64  # of one variable; more are sampled together


def by_paths(q: Second, facts: Structure, tolerance: float | None) -> Work[Quantity | None]:
    """E[u v] of tangents or gradients; None where they are none, or have too many paths."""
    if not (facts[q.u].odd and facts[q.v].odd):
        return None
    first, second = _paths(q.u, facts), _paths(q.v, facts)
    if first is None or second is None:
        return None
    if first == [q.u] and second == [q.v]:
        return (yield from _of_two(q, facts, tolerance))
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    shape = tuple(sizes[c] for c in q.out)
    terms = []
    for a in _groups(first, q.lu, facts):
        for b in _groups(second, q.lv, facts):
            for some, others in ((a.long, b.short + b.long), (a.short, b.long)):
                if some and others:
                    together = replace(q, u=_sum(some), v=_sum(others))
                    terms.append((1.0, (yield from field_of(together, facts, tolerance))))
            alone = (*itertools.product(a.mapped, b.long), *itertools.product(a.long, b.mapped))
            for u, v in (*itertools.product(a.short + a.mapped, b.short + b.mapped), *alone):
                terms.append((1.0, (yield from ask(u, q.lu, v, q.lv, q.out, q.cross))))
    return combine(terms, shape, q.cross)


@dataclass
class _Group:
    """Paths of slopes of the same Gaussians: with one slope at most, with several, and linear maps of either, which are asked for alone."""

    short: list[Node] = field(default_factory=list)
    long: list[Node] = field(default_factory=list)
    mapped: list[Node] = field(default_factory=list)


def _groups(paths: list[Node], letters: str, facts: Structure) -> list[_Group]:
    """The paths by what their slopes read: those of one group are sampled at the same points, so that their sum may be."""
    found: dict[Hashable, _Group] = {}
    for path in paths:
        gaussian = facts[path].gaussian
        if not gaussian and not isinstance(path, Nonlin):
            found.setdefault(None, _Group()).mapped.append(path)
            continue
        group = found.setdefault(() if gaussian else read_by((path, letters), True, facts), _Group())
        (group.long if _ended(path, facts) is None else group.short).append(path)
    return list(found.values())


def _sum(paths: list[Node]) -> Node:
    return paths[0] if len(paths) == 1 else LinComb(tuple((1.0, p) for p in paths), source=paths[0].source)


def slopes_of(u: Node, facts: Structure) -> list[Nonlin]:
    """The slopes F of the paths F g of a tangent or a gradient, in the form in which they are asked for."""
    if not isinstance(u, Nonlin) or not facts[u].odd or facts[u].carried:
        return []
    ends = [_ended(path, facts) for path in _paths(u, facts) or ()]
    slopes = [end.slope for end in ends if end is not None and end.slope is not None]
    return [_thin(s, LETTERS[: len(s.type.shape)])[0] for s in slopes if s.type.kind == "vector"]


# ------------------------------------------------------------------------------------------ paths


def _paths(u: Node, facts: Structure) -> list[Node] | None:
    """The variables of one path each whose sum a tangent or a gradient is; None for another variable, or too many of them."""
    if facts[u].gaussian:
        return [u]
    found: list[Node] = []
    match u:
        case LinComb(terms=terms):
            for a, x in terms:
                inner = _paths(x, facts) if x.type.kind == "vector" else None
                if inner is None:
                    return None
                found += (
                    [u] if inner == [x] and len(terms) == 1 else [LinComb(((a, p),), source=u.source) for p in inner]
                )
        case PositionMap(op=op, args=(x, *aux), result=result):
            inner = _paths(x, facts)
            if inner is None:
                return None
            found += [u] if inner == [x] else [PositionMap(op, (p, *aux), result, source=u.source) for p in inner]
        case Nonlin(xs=xs):
            odd = tuple(i for i, x in enumerate(xs) if facts[x].odd)
            slopes = None if any(facts[x].odd is None for x in xs) else _slopes(u.phi, odd)
            for i, slope in zip(odd, slopes or (), strict=False):
                inner = _paths(xs[i], facts)
                if inner is None:
                    return None
                found += [u] if inner == [xs[i]] and len(odd) == 1 else [_times(slope, u, p) for p in inner]
    return found if 0 < len(found) <= MOST_PATHS else None


@lru_cache(maxsize=4096)
def _slopes(phi: Phi, odd: tuple[int, ...]) -> tuple[sympy.Expr, ...] | None:
    """The multiples of some arguments that make up a function that is linear in them; None for another one."""
    names = [vector(i) for i in odd]
    slopes = tuple(phi.expr.diff(z) for z in names)
    linear = (
        not any(slope.has(*names) for slope in slopes) and phi.expr.xreplace(dict.fromkeys(names, sympy.S.Zero)) == 0
    )
    return slopes if linear else None


def _times(slope: sympy.Expr, u: Nonlin, x: Node) -> Node:
    """A function of arguments of u, times x."""
    if slope.is_number:
        return LinComb(((float(slope), x),), source=u.source)
    own = _function(slope, u)
    xs = (*own.xs, x)
    return Nonlin(Phi(own.phi.expr * vector(len(own.xs)), len(xs), len(own.thetas)), xs, own.thetas, source=u.source)


def _function(expr: sympy.Expr, u: Nonlin) -> Nonlin:
    """The function of those arguments of u that it has; of no vectors, a deterministic array."""
    own = function_of(expr, u)
    return (
        own if expr.free_symbols & set(u.phi.vectors) else Nonlin(Phi(own.phi.expr, 0, len(own.thetas)), (), own.thetas)
    )


@dataclass(frozen=True)
class _Ended:
    """One slope, if any, and the Gaussian that it multiplies."""

    slope: Nonlin | None
    gaussian: Node


def _ended(path: Node, facts: Structure) -> _Ended | None:
    """A path with one slope at most; None for a longer one, and for linear maps of one."""
    if facts[path].gaussian:
        return _Ended(None, path)
    if not isinstance(path, Nonlin):
        return None
    (i,) = (i for i, x in enumerate(path.xs) if facts[x].odd)
    (slope,) = _slopes(path.phi, (i,)) or (None,)
    if slope is None or not facts[path.xs[i]].gaussian:
        return None
    return _Ended(_function(slope, path), path.xs[i])


# ------------------------------------------------------------------------------------------ two paths


def _of_two(q: Second, facts: Structure, tolerance: float | None) -> Work[Quantity]:
    """E[u v] of one path each."""
    first, second = _ended(q.u, facts), _ended(q.v, facts)
    if first is None or second is None:
        return (yield from field_of(q, facts, tolerance))
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    shape = tuple(sizes[c] for c in q.out)
    sides = ((first, q.lu, 0), (second, q.lv, 1))
    slopes = [(*_thin(end.slope, letters), side) for end, letters, side in sides if end.slope is not None]
    read = "".join(letters for _, letters, _ in slopes)
    every = "".join(dict.fromkeys(c for c in q.lu + q.lv if c != "1"))
    kept = "".join(c for c in every if c in q.out or c in read)
    covariance = yield from ask(first.gaussian, q.lu, second.gaussian, q.lv, kept, q.cross)
    if is_zero(covariance):
        return contract(f"{kept}->{q.out}", [Operand(covariance)], shape, q.cross)
    made, own = yield from _mean(slopes, every, q.cross)
    return contract(f"{own},{kept}->{q.out}", [made, Operand(covariance)], shape, q.cross)


def _mean(slopes: list[tuple[Nonlin, str, int]], every: str, cross: bool) -> Work[tuple[Operand, str]]:
    """E[F F'], or E[F] of the only one, and the letters of its axes."""
    (s, ls, side), *rest = slopes
    if rest:
        ((t, lt, _),) = rest
        out = "".join(c for c in every if c in ls + lt)
        return Operand((yield from ask(s, ls, t, lt, out, cross))), out
    if s.type.kind == "scalar":
        return Operand((yield Value(s)), side if cross else None), ls
    return Operand((yield Mean(s)), side if cross else None), ls.replace("1", "")


def _thin(slope: Nonlin, letters: str) -> tuple[Nonlin, str]:
    """The same, with one place in the axes along which it is constant: a gradient has an axis for every output, along which the slopes
    in it are repeated. With the letters of its axes."""
    shape = slope.type.shape
    letters = letters[len(letters) - len(shape) :]
    plain = "".join("1" if n == 1 else c for c, n in zip(letters, shape, strict=True))
    if slope.type.kind == "scalar":
        return slope, plain
    marks = LETTERS[: len(shape)]
    found = [original(x, marks) for x in slope.xs]
    axes = [own.replace("1", "") for _, own in found]
    thin = tuple(n if c in axes[0] else 1 for c, n in zip(marks, shape, strict=True))
    given = [(1,) * (len(shape) - len(t.type.shape)) + t.type.shape for t in slope.thetas]
    if (
        thin == shape
        or any(own != axes[0] for own in axes)
        or list(axes[0]) != sorted(axes[0])
        or any(n > 1 == thin[i] for own in given for i, n in enumerate(own))
    ):
        return slope, plain
    typed = Type("vector", thin, slope.type.axis, slope.type.width)
    xs = tuple(x if x.type == typed else PositionMap(position("reshape", to=thin), (x,), typed) for x, _ in found)
    return (
        Nonlin(slope.phi, xs, slope.thetas, source=slope.source),
        "".join("1" if n == 1 else c for c, n in zip(letters, thin, strict=True)),
    )
