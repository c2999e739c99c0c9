"""Products of functions of one Gaussian each, taken apart for the numerical tiers.

Every factor becomes a distribution: smooth pieces between kinks, and delta functions (they come with
derivatives).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy as sp

from ntk_rules.errors import Declined
from ntk_rules.panels import Piecewise
from ntk_rules.pieces import cut, has_kinks
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.switches import NotCuttable


@dataclass(frozen=True)
class Delta:
    """weight(z) times the order-th derivative of delta(z - place)."""

    place: sp.Expr
    order: int
    weight: sp.Expr


@dataclass(frozen=True)
class Factor:
    """f(z_i) = regular part + delta functions."""

    index: int
    regular: sp.Expr
    deltas: tuple[Delta, ...]


def separated(question: Question) -> tuple[sp.Expr, dict[int, sp.Expr]]:
    """(coefficient, {i: the factors in z_i}) of a product of functions of one Gaussian each, or Declined."""
    if question.expr is None:
        raise Declined("only the normal form is known")
    zs = gaussian_symbols(question.gaussians)
    coefficient = sp.S.One
    groups: dict[int, sp.Expr] = {}
    for factor in sp.Mul.make_args(question.expr):
        used = [i for i, z in enumerate(zs) if factor.has(z)]
        if len(used) > 1:
            raise Declined(f"{factor} mixes {len(used)} Gaussians")
        if not used:
            coefficient = coefficient * factor
        else:
            groups[used[0]] = groups.get(used[0], sp.S.One) * factor
    return coefficient, groups


def factor_of(expr: sp.Expr, i: int, question: Question) -> Factor:
    """`expr` as a distribution in z_i."""
    z = gaussian_symbols(question.gaussians)[i]
    if not expr.has(sp.DiracDelta):
        return Factor(i, expr, ())
    regular: list[sp.Expr] = []
    deltas: list[Delta] = []
    for addend in sp.Add.make_args(sp.expand_mul(expr)):
        found = [a for a in sp.Mul.make_args(addend) if isinstance(a, sp.DiracDelta)]
        if not found:
            regular.append(addend)
        elif len(found) == 1:
            deltas += _deltas(found[0], addend / found[0], z)
        else:
            raise Declined(f"{addend} multiplies delta functions of one Gaussian")
    return Factor(i, sp.Add(*regular), _merged(deltas))


def _deltas(delta: sp.DiracDelta, weight: sp.Expr, z: sp.Symbol) -> list[Delta]:
    """weight(z) delta^(n)(z - a) as delta functions of constant weight: sum_k (-1)^k binom(n, k) weight^(k)(a) delta^(n-k)(z - a)."""
    argument = delta.args[0]
    if sp.diff(argument, z) != 1:
        raise Declined(f"{delta} has a slope other than 1")
    place = sp.expand(z - argument)
    order = int(delta.args[1]) if len(delta.args) > 1 else 0
    if order and has_kinks(weight):
        return [Delta(place, order, weight)]
    out = []
    for k in range(order + 1):
        there = _sum_of([addend.xreplace({z: place}) for addend in sp.Add.make_args(sp.expand(weight))])
        out.append(Delta(place, order - k, (-1) ** k * sp.binomial(order, k) * there))
        weight = sp.diff(weight, z) if k < order else weight
    return out


def _merged(deltas: list[Delta]) -> tuple[Delta, ...]:
    """Those of one place and order added up, and what vanishes left out."""
    weights: dict[tuple[sp.Expr, int], list[sp.Expr]] = {}
    for d in deltas:
        weights.setdefault((d.place, d.order), []).append(d.weight)
    sums = {key: _sum_of(addends) for key, addends in weights.items()}
    return tuple(Delta(place, order, weight) for (place, order), weight in sums.items() if weight != 0)


def _sum_of(addends: list[sp.Expr]) -> sp.Expr:
    """The sum; 0 where numbers cancel up to their rounding. Addends with parameters in them may make a number too, as b - b."""
    total = sp.Add(*addends)
    if total.is_number and abs(float(total)) <= 1e-14 * sum(abs(float(a)) for a in addends if a.is_number):
        return sp.S.Zero
    return total


def collected(question: Question) -> Question:
    """A derivative with what multiplies delta functions evaluated at their places: much of it cancels, as (1 - e^z) delta(z)."""
    if question.expr is None or not question.expr.has(sp.DiracDelta):
        return question
    zs = gaussian_symbols(question.gaussians)
    try:
        coefficient, groups = separated(question)
        factors = [factor_of(expr, i, question) for i, expr in groups.items()]
    except Declined:
        return question
    if any(has_kinks(d.weight) for f in factors for d in f.deltas):
        return question
    sums = [
        sp.Add(f.regular, *(d.weight * sp.DiracDelta(zs[f.index] - d.place, d.order) for d in f.deltas))
        for f in factors
    ]
    return replace(question, expr=sp.Mul(coefficient, *sums), terms=None)


def piecewise(expr: sp.Expr, i: int, question: Question) -> Piecewise:
    """The regular part as pieces, or Declined when the kinks cannot be located."""
    z = gaussian_symbols(question.gaussians)[i]
    try:
        pieces = cut(expr, z)
    except NotCuttable as reason:
        raise Declined(str(reason)) from None
    for piece in pieces:
        left = any(f.has(z) for f in piece.expr.atoms(sp.Heaviside, sp.DiracDelta))
        if left or (has_kinks(piece.expr, z) and len(pieces) == 1):
            raise Declined(f"{piece.expr} keeps a kink")
    return Piecewise(pieces, z, question.parameter_symbols())
