"""Functions of two Gaussians with kinks along straight lines, as smooth functions on the regions between the lines.

A decision tree: every inner node asks on which side of a line the point lies, every leaf is smooth. Along one path a line
is asked about once, so that written out, N + (P - N) H(line), no step is multiplied by itself, and derivatives by the
product rule hold as distributions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import sympy as sp

from ntk_rules.functions import Opaque
from ntk_rules.ordered import ORDERED
from ntk_rules.pieces import KINKED, branches
from ntk_rules.switches import NotCuttable, sign_changes

_MOST_LINES = 6


@dataclass(frozen=True)
class Line:
    """The points where slope . (z, w) = offset, on whose positive side slope . (z, w) > offset."""

    slope: tuple[sp.Expr, sp.Expr]
    offset: sp.Expr

    def form(self, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
        """Positive on the positive side, zero on the line."""
        return sp.Add(*(a * z for a, z in zip(self.slope, zs, strict=True)), -self.offset)


@dataclass(frozen=True)
class Split:
    """One tree on each side of a line."""

    line: Line
    positive: Tree
    negative: Tree


Tree: TypeAlias = Split | sp.Expr


@functools.lru_cache(maxsize=1024)
def regions(expr: sp.Expr, zs: tuple[sp.Symbol, sp.Symbol]) -> Tree:
    """`expr` as a tree, or NotCuttable.

    >>> u, v = sp.symbols("u v", real=True)
    >>> tree = regions(sp.tanh(sp.Max(u, v)), (u, v))
    >>> tree.line.form((u, v)), tree.positive, tree.negative
    (u - v, tanh(u), tanh(v))
    """
    tree = _grow(expr, zs, {})
    if len(lines(tree)) > _MOST_LINES:
        raise NotCuttable(f"{len(lines(tree))} lines of kinks, at most {_MOST_LINES} are split")
    return tree


def lines(tree: Tree) -> tuple[Line, ...]:
    """All lines that the tree asks about."""
    if not isinstance(tree, Split):
        return ()
    return tuple(dict.fromkeys((tree.line, *lines(tree.positive), *lines(tree.negative))))


def written_out(tree: Tree, zs: tuple[sp.Symbol, ...]) -> sp.Expr:
    """The tree as one expression, linear in the step of every line."""
    if not isinstance(tree, Split):
        return tree
    positive, negative = written_out(tree.positive, zs), written_out(tree.negative, zs)
    return negative + (positive - negative) * sp.Heaviside(tree.line.form(zs), sp.Rational(1, 2))


def _grow(expr: sp.Expr, zs: tuple[sp.Symbol, sp.Symbol], known: dict[Line, bool]) -> Tree:
    """`known`: on which sides of which lines the regions lie that are still to be told apart."""
    node = next((n for n in sp.postorder_traversal(expr) if isinstance(n, KINKED) and n.has(*zs)), None)
    if node is None:
        if any(f.kinks for f in expr.atoms(Opaque)) or expr.has(*ORDERED):
            raise NotCuttable(f"{expr} has kinks that only JAX knows")
        return expr
    switch, positive, negative = branches(node)

    def side(holds: bool, known: dict[Line, bool]) -> Tree:
        return _grow(expr.xreplace({node: positive if holds else negative}), zs, known)

    return _by_sign(list(sp.Mul.make_args(sp.factor_terms(switch))), True, zs, known, side)


def _by_sign(factors, positive, zs, known, side) -> Tree:
    """Asks for the signs of the factors one after the other; `side` makes the tree for the sign of their product."""
    if not factors:
        return side(positive, known)
    factor, *others = factors
    used = tuple(z for z in zs if factor.has(z))
    if len(used) == 2:
        line, scale = line_of(factor, zs)
        along = bool(scale.is_positive)

        def then(holds: bool, known: dict[Line, bool]) -> Tree:
            return _by_sign(others, positive == (holds == along), zs, known, side)

        return _ask(line, known, then)
    places, first = sign_changes(factor, used[0] if used else zs[0])

    def between(k: int, known: dict[Line, bool]) -> Tree:
        """The point lies above the first k places."""
        if k == len(places):
            return _by_sign(others, positive == (first == (k % 2 == 0)), zs, known, side)
        line = Line(tuple(sp.Integer(z == used[0]) for z in zs), places[k])

        def then(above: bool, known: dict[Line, bool]) -> Tree:
            here = positive == (first == (k % 2 == 0))
            return between(k + 1, known) if above else _by_sign(others, here, zs, known, side)

        return _ask(line, known, then)

    return between(0, known)


def _ask(line: Line, known: dict[Line, bool], then) -> Tree:
    if line in known:
        return then(known[line], known)
    positive, negative = then(True, {**known, line: True}), then(False, {**known, line: False})
    return positive if positive == negative else Split(line, positive, negative)


def line_of(switch: sp.Expr, zs: tuple[sp.Symbol, ...]) -> tuple[Line, sp.Expr]:
    """The line where an affine switch vanishes, and switch / form of that line, a number of known sign."""
    slope = tuple(sp.diff(switch, z) for z in zs)
    if any(a.has(*zs) for a in slope):
        raise NotCuttable(f"the kink of {switch} is not along a straight line")
    lead = next(a for a in slope if a != 0)
    if not (lead.is_positive or lead.is_negative):
        raise NotCuttable(f"the sign of {lead} is not known")
    offset = sp.expand(-switch.xreplace(dict.fromkeys(zs, sp.S.Zero)) / lead)
    return Line((sp.simplify(slope[0] / lead), sp.simplify(slope[1] / lead)), offset), lead
