"""Between which numbers a hidden variable lies: what tells that a comparison always holds, or never."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import sympy
from sympy.logic.boolalg import Boolean

from ntk_rules import functions as nf
from tensorprog.frontend.stacked import moves, resolved
from tensorprog.frontend.values import Known, Value, Var, kind_of
from tensorprog.ir import Const, LinComb, Node, Nonlin, PositionMap

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["bounds", "bounds_of", "by_bounds"]

Bounds = tuple[float, float]
_LINE: Bounds = (-math.inf, math.inf)
_COMPARE = {"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}


def by_bounds(eqn: Equation, values: Sequence[Value]) -> sympy.Basic | None:
    """Whether a comparison of whole numbers always holds, or never; None where it may or may not."""
    holds = _COMPARE.get(eqn.primitive)
    if holds is None or any(kind_of(atom) not in "iu" for atom in eqn.eqns[0].invars):
        return None
    (a, b), (c, d) = map(bounds_of, values)
    outcomes = {holds(x, y) for x in (a, b) for y in (c, d)}
    return sympy.sympify(outcomes.pop()) if len(outcomes) == 1 else None


def bounds_of(value: Value) -> Bounds:
    """Numbers between which all entries lie, infinite where none are known."""
    if isinstance(value, Known):
        return min(float(v.min()) for v in value.values), max(float(v.max()) for v in value.values)
    if not isinstance(value, Var):
        return _LINE
    return _hull([bounds(node) for _, node in value.blocks])


def _hull(parts: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in parts), max(high for _, high in parts)


@lru_cache(maxsize=4096)
def bounds(node: Node) -> Bounds:
    """The same of one variable."""
    node = resolved(node)
    match node:
        case Const():
            array = node.value.array()
            return float(array.min()), float(array.max())
        case PositionMap(args=(x, *_)) if moves(node):
            return bounds(x)
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            known = {s: bounds(x) for s, x in zip((*phi.vectors, *phi.parameters), (*xs, *thetas), strict=True)}
            return _bounds_of(phi.expr, known)
        case LinComb(terms=terms) if not any(isinstance(a, Node) for a, _ in terms):
            parts = [sorted(float(a) * e for e in bounds(x)) for a, x in terms if a != 0]  # type: ignore[arg-type]
            return sum(p[0] for p in parts), sum(p[1] for p in parts)
    return _LINE


def _bounds_of(expr: sympy.Basic, known: dict[sympy.Symbol, Bounds]) -> Bounds:
    if isinstance(expr, sympy.Symbol):
        return known.get(expr, _LINE)
    if isinstance(expr, Boolean):
        return 0.0, 1.0
    if expr.is_number:
        return float(expr), float(expr)
    if isinstance(expr, sympy.Piecewise):
        return _hull([_bounds_of(value, known) for value, _ in expr.args])
    inner = [_bounds_of(a, known) for a in expr.args] if isinstance(expr, (sympy.Add, sympy.Max, sympy.Min)) else []
    match expr:
        case sympy.Add():
            return sum(a for a, _ in inner), sum(b for _, b in inner)
        case sympy.Max():
            return max(a for a, _ in inner), max(b for _, b in inner)
        case sympy.Min():
            return min(a for a, _ in inner), min(b for _, b in inner)
    if isinstance(expr, nf.Rounding):
        low, high = _bounds_of(expr.args[0], known)
        return tuple(float(expr.whole(e)) if math.isfinite(e) else e for e in (low, high))  # type: ignore[return-value]
    return _LINE
