"""Functions of one Gaussian with kinks, cut into intervals on which they are smooth.

Max, Min, Abs, sign, Heaviside and comparisons vanish: on each interval the function is one smooth expression.
Kinks that turn out to be none (jax's softplus is max(x, 0) + log1p(exp(-|x|))) are healed.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import mpmath as mp
import sympy as sp

from ntk_rules.functions import JUMPING, Opaque, elementary, order_statistic
from ntk_rules.switches import NotCuttable, less, sign_changes

KINKED = (sp.Heaviside, sp.sign, sp.Abs, sp.Max, sp.Min, sp.Piecewise)


@dataclass(frozen=True)
class Piece:
    """`expr` on the interval (low, high)."""

    low: sp.Expr
    high: sp.Expr
    expr: sp.Expr


def has_kinks(expr: sp.Expr, z: sp.Symbol | None = None) -> bool:
    """True when `expr` has a function with kinks in it; with `z`, one of z (what has kinks in parameters alone is constant in z)."""
    if z is not None:
        return any(f.has(z) for f in expr.atoms(*KINKED, *JUMPING, order_statistic)) or any(
            f.kinks and f.has(z) for f in expr.atoms(Opaque)
        )
    return expr.has(*KINKED, *JUMPING, order_statistic) or any(f.kinks for f in expr.atoms(Opaque))


@functools.lru_cache(maxsize=4096)
def cut(expr: sp.Expr, z: sp.Symbol) -> tuple[Piece, ...]:
    """The smooth pieces of `expr` along `z`, in order, covering the line.

    >>> z = sp.Symbol("z", real=True)
    >>> [(p.low, p.expr) for p in cut(sp.Max(z, 0) + 1, z)]
    [(-oo, 1), (0, z + 1)]
    """
    if any(f.has(z) for f in expr.atoms(*JUMPING, order_statistic)):
        raise NotCuttable(f"{expr} jumps at infinitely many places, or has kinks along lines of several arguments")
    pieces = _cut(expr, z, -sp.oo, sp.oo)
    for node in expr.atoms(Opaque):
        for kink in node.kinks:
            for place in sign_changes(node.args[0] - sp.nsimplify(kink), z)[0]:
                pieces = _insert(pieces, place)
    merged = [pieces[0]]
    for piece in pieces[1:]:
        last = merged[-1]
        if not piece.expr.has(Opaque) and _same_function(last.expr, piece.expr, z):
            keep = last.expr if last.expr.count_ops() <= piece.expr.count_ops() else piece.expr
            merged[-1] = Piece(last.low, piece.high, keep)
        else:
            merged.append(piece)
    return tuple(merged)


def _insert(pieces: list[Piece], root: sp.Expr) -> list[Piece]:
    out = []
    for p in pieces:
        inside = less(p.low, root) and less(root, p.high)
        out += [Piece(p.low, root, p.expr), Piece(root, p.high, p.expr)] if inside else [p]
    return out


def _cut(expr: sp.Expr, z: sp.Symbol, low: sp.Expr, high: sp.Expr) -> list[Piece]:
    node = _innermost(expr, z)
    if node is None:
        return [Piece(low, high, expr)]
    switch, when_positive, when_negative = branches(node)
    places, positive = sign_changes(switch, z)
    sides = [expr.xreplace({node: when_negative}), expr.xreplace({node: when_positive})]
    pieces = []
    for left, right in itertools.pairwise((-sp.oo, *places, sp.oo)):
        left, right = _later(left, low), _earlier(right, high)
        if less(left, right):
            pieces += _cut(sides[positive], z, left, right)
        positive = not positive
    return pieces


def _later(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return b if a == b or less(a, b) else a


def _earlier(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return a if a == b or less(a, b) else b


def _innermost(expr: sp.Expr, z: sp.Symbol) -> sp.Expr | None:
    for node in sp.postorder_traversal(expr):
        if isinstance(node, KINKED) and node.has(z):
            return node
    return None


def branches(node: sp.Expr) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """(switch, value where switch > 0, value where switch < 0)."""
    if isinstance(node, sp.Heaviside):
        return node.args[0], sp.S.One, sp.S.Zero
    if isinstance(node, sp.sign):
        return node.args[0], sp.S.One, -sp.S.One
    if isinstance(node, sp.Abs):
        return node.args[0], node.args[0], -node.args[0]
    if isinstance(node, sp.Max | sp.Min):
        first, second, *others = node.args
        left, right = (node.func(a, *others) for a in (first, second))
        return first - second, *((left, right) if isinstance(node, sp.Max) else (right, left))
    return _piecewise_branches(node)


# A relation's truth where lhs - rhs is positive, and where it is negative.
_TRUTH = {
    sp.StrictGreaterThan: (True, False), sp.GreaterThan: (True, False), sp.StrictLessThan: (False, True),
    sp.LessThan: (False, True), sp.Equality: (False, False), sp.Unequality: (True, True),
}  # fmt: skip


def _piecewise_branches(node: sp.Piecewise) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    (value, condition), *others = node.args
    condition = sp.sympify(condition)
    if condition == sp.true:
        return sp.S.One, value, value
    rest = sp.Piecewise(*others) if others else sp.S.Zero
    relation = next(iter(sorted(condition.atoms(sp.core.relational.Relational), key=str)))
    switch = relation.lhs - relation.rhs
    answer = _TRUTH[relation.func]
    sides = []
    for holds in answer:
        left = condition.xreplace({relation: sp.true if holds else sp.false})
        sides.append(sp.Piecewise((value, left), (rest, True)))
    return switch, sides[0], sides[1]


def _same_function(left: sp.Expr, right: sp.Expr, z: sp.Symbol) -> bool:
    """Whether two smooth expressions are one function, seen at complex points off the line."""
    if left == right:
        return True
    if not (left.has(sp.Function) and right.has(sp.Function)):
        return False
    gap = elementary(left - right)
    symbols = sorted(gap.free_symbols, key=str)
    value = sp.lambdify(symbols, gap, "mpmath")  # SymPy's own evaluation looks for digits of what is zero, for seconds
    for shift in (0, -61, 83):
        with mp.workdps(40):
            point = [mp.mpc(mp.mpf(37 + shift) / 100 + mp.mpf(k) / 7, mp.mpf(11) / 100) for k in range(len(symbols))]
            try:
                size = abs(complex(value(*point)))
            except (TypeError, ValueError, ZeroDivisionError, NameError):
                return False
        if not size < 1e-12:
            return False
    return True
