"""Sums of vectors with deterministic coefficients: equal terms joined, terms that cancel dropped.

A network that subtracts what its transposes add, as approximate message passing does with the Onsager term, has Gaussian
iterates only once the two are seen to be the same.
"""

from __future__ import annotations

import math

import sympy

from ntk_rules.steps import canonical_kinks
from tensorprog.ir import LinComb, Moment, Node, Nonlin, Phi, PositionMap
from tensorprog.ir.phi import parameter, snap

__all__ = ["Term", "cancelled", "joined", "scaled"]

MOST_TERMS = 64  # of a sum in which a Zdot may be cancelled
ROUNDING = 1e-13  # a coefficient below it, among others of order one, is a zero

Term = tuple[float | Node, Node]


def scaled(factor: Node, scale: float) -> Node:
    """A deterministic array times a number."""
    return factor if scale == 1.0 else LinComb(((scale, factor),))


def joined(terms: list[Term]) -> list[Term]:
    """Numbers times the same vector are added; what adds to zero goes."""
    numbers: dict[Node, float] = {}
    for a, x in terms:
        if not isinstance(a, Node):
            numbers[x] = numbers.get(x, 0.0) + a
    kept = [(a, x) for x, a in numbers.items() if a != 0.0]
    return kept + [(a, x) for a, x in terms if isinstance(a, Node)]


def cancelled(node: LinComb, products: set[Node]) -> LinComb:
    """A sum of a Zhat, its Zdot, and others, without the terms of the Zdot that the others cancel: the Onsager term of
    approximate message passing. The same sum where none does."""
    flat, opened = [], False
    waiting = list(reversed(node.terms))
    while waiting:
        a, x = waiting.pop()
        if x in products and not isinstance(a, Node):
            assert isinstance(x, LinComb)
            flat += [(_times(a, b), y) for b, y in x.terms]
            opened = True
        elif isinstance(x, LinComb) and x.type == node.type and (len(x.terms) == 1 or not isinstance(a, Node)):
            waiting += [(_times(a, b), y) for b, y in reversed(x.terms)]
        else:
            flat.append((a, x))
        if len(flat) > MOST_TERMS:
            return node
    left = _merged(flat) if opened else flat
    return node if len(left) == len(flat) else LinComb(tuple(left), source=node.source)


def _times(a: float | Node, b: float | Node) -> float | Node:
    if not isinstance(a, Node) and not isinstance(b, Node):
        return a * b
    if isinstance(a, Node) and isinstance(b, Node):
        return Nonlin(Phi(parameter(0) * parameter(1), 0, 2), (), (a, b))
    factor, node = (a, b) if isinstance(b, Node) else (b, a)
    if isinstance(node, LinComb) and len(node.terms) == 1 and not isinstance(node.terms[0][0], Node):
        return scaled(node.terms[0][1], factor * node.terms[0][0])  # type: ignore[operator]
    return scaled(node, factor)  # type: ignore[arg-type]


def _merged(flat: list[Term]) -> list[Term]:
    """The terms with the coefficients of each vector added as far as they are numbers, numbers times one variable, or means of
    functions of the same variables."""
    total: dict[tuple[Node, Node | tuple[Node, ...] | None], list[tuple[float | Node, sympy.Expr]]] = {}
    for a, x in flat:
        scale, base = _split(a)
        function = base.phi.expr if isinstance(base, Moment) else sympy.Integer(1)
        key = (*base.xs, *base.thetas) if isinstance(base, Moment) else base
        total.setdefault((x, key), []).append((a, snap(scale) * function))
    left: list[Term] = []
    for (x, _), parts in total.items():
        value = sympy.Add(*(part for _, part in parts))
        if _is_zero(value):
            continue
        left.append((parts[0][0] if len(parts) == 1 else _coefficient(value, parts[0][0]), x))
    return left


def _coefficient(value: sympy.Expr, like: float | Node) -> float | Node:
    """The sum of coefficients of one kind, of which `like` is one."""
    _, base = _split(like)
    if base is None:
        return float(value)
    if isinstance(base, Moment):
        return Moment(Phi(value, base.phi.n_vectors, base.phi.n_parameters), base.xs, base.thetas, source=base.source)
    return scaled(base, float(value))


def _is_zero(value: sympy.Expr) -> bool:
    """Zero up to the rounding of its coefficients, with kinks in their standard form."""
    zs = tuple(sorted(value.free_symbols, key=str))
    left = sympy.expand(canonical_kinks(sympy.expand(value), zs))
    return all(abs(float(c)) < ROUNDING for c in left.evalf(17).as_coefficients_dict().values())


def _split(a: float | Node) -> tuple[float, Node | None]:
    """A coefficient as a number times a variable."""
    if not isinstance(a, Node):
        return a, None
    if isinstance(a, PositionMap) and a.op.name == "reshape" and math.prod(a.type.shape) == 1:
        return _split(a.args[0])
    if isinstance(a, LinComb) and len(a.terms) == 1 and not isinstance(a.terms[0][0], Node):
        scale, base = _split(a.terms[0][1])
        return a.terms[0][0] * scale, base
    if isinstance(a, Nonlin) and len(a.thetas) == 1 and (rate := a.phi.expr / parameter(0)).is_number:
        scale, base = _split(a.thetas[0])
        return float(rate) * scale, base
    return 1.0, a
