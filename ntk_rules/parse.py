"""From a SymPy expression to the normal form of `terms.py`, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from ntk_rules.errors import NoRule
from ntk_rules.functions import exponentials_exposed
from ntk_rules.pieces import KINKED, Piece, branches, cut, has_kinks
from ntk_rules.switches import NotCuttable
from ntk_rules.terms import Form, Term, constant_term, multiply

_MOST_TERMS = 600


class Unparsed(ValueError):
    """The expression is outside the normal form; the message names the part."""


def parse(expr: sp.Expr, gaussians: Sequence[sp.Symbol]) -> list[Term]:
    """The terms whose sum is `expr`; like terms are collected."""
    return _collect(_parse(exponentials_exposed(expr), tuple(gaussians)))


def _collect(terms: list[Term]) -> list[Term]:
    sums: dict[Term, list[sp.Expr]] = {}
    for term in terms:
        sums.setdefault(replace(term, coefficient=sp.S.One), []).append(term.coefficient)
    joined = ((key, sp.Add(*parts)) for key, parts in sums.items())
    return [replace(key, coefficient=c) for key, c in joined if c != 0]


def _parse(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    used = [z for z in zs if expr.has(z)]
    if not used:
        return [constant_term(len(zs), expr)]
    if expr in zs:
        unit = tuple(int(z == expr) for z in zs)
        return [replace(constant_term(len(zs), sp.S.One), powers=unit)]
    if expr.is_Add and expr.has(sp.DiracDelta):
        apart = [part for part in expr.args if part.has(sp.DiracDelta)]
        rest = sp.Add(*(part for part in expr.args if not part.has(sp.DiracDelta)))
        return [t for part in (*apart, rest) if part != 0 for t in _parse(part, zs)]
    if len(used) == 1 and has_kinks(expr):
        try:
            return _parse_pieces(expr, used[0], zs)
        except NotCuttable:
            pass
    if expr.is_Add:
        return [t for part in expr.args for t in _parse(part, zs)]
    if expr.is_Mul:
        return _product([_parse(part, zs) for part in expr.args])
    if expr.is_Pow and expr.exp.is_Integer and 0 < expr.exp <= 16:
        return _product([_parse(expr.base, zs)] * int(expr.exp))
    for head, rule in _HEADS.items():
        if isinstance(expr, head):
            return rule(expr, zs)
    raise Unparsed(f"{expr}")


def _product(factors: list[list[Term]]) -> list[Term]:
    result = factors[0]
    for terms in factors[1:]:
        result = _collect([p for a in result for b in terms for p in multiply(a, b)])
        if len(result) > _MOST_TERMS:
            raise Unparsed(f"a product of more than {_MOST_TERMS} terms")
    return result


def _parse_pieces(expr: sp.Expr, z: sp.Symbol, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    """sum_i F_i 1_(a_i, b_i), each indicator by steps that face away from exponential growth, else away from 0.

    What faces away from 0 vanishes with the variance: hard tanh is then z and little else, not a sum of ones that cancel.
    """
    out: list[Term] = []
    i = zs.index(z)
    pieces = cut(expr, z)
    around = next((p for p in pieces if p.low.is_negative and p.high.is_positive), None)
    for k, piece in enumerate(pieces):
        if has_kinks(piece.expr):
            raise Unparsed(f"{piece.expr}")
        for term in _parse(piece.expr, zs):
            growth = term.tilt[i]
            if growth != 0 or around is None:
                indicator = _indicator(piece, z, leftwards=bool(growth.is_positive))
            elif piece is around:
                indicator = _all_but_outside(piece, z)
            else:
                indicator = _indicator(piece, z, leftwards=k < pieces.index(around))
            for sign, argument in indicator:
                scaled = replace(term, coefficient=sign * term.coefficient)
                out += [scaled] if argument is None else [p for t in _step(argument, zs) for p in multiply(scaled, t)]
    return _collect(out)


Indicator = list[tuple[int, sp.Expr | None]]  # signed steps by their arguments; None is the constant 1


def _indicator(piece: Piece, z: sp.Symbol, leftwards: bool) -> Indicator:
    """1_(low, high) by steps in one direction."""
    first, second = (piece.high, piece.low) if leftwards else (piece.low, piece.high)
    toward = -1 if leftwards else 1
    out: Indicator = [(1, None if first in (sp.oo, -sp.oo) else toward * (z - first))]
    if second not in (sp.oo, -sp.oo):
        out.append((-1, toward * (z - second)))
    return out


def _all_but_outside(piece: Piece, z: sp.Symbol) -> Indicator:
    """1_(low, high) as 1 less the steps to either side."""
    out: Indicator = [(1, None)]
    if piece.high != sp.oo:
        out.append((-1, z - piece.high))
    if piece.low != -sp.oo:
        out.append((-1, piece.low - z))
    return out


def affine(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> tuple[tuple[sp.Expr, ...], sp.Expr]:
    """expr = slope . z + offset, or Unparsed."""
    slope = tuple(sp.diff(expr, z) if expr.has(z) else sp.S.Zero for z in zs)
    if any(a.has(*zs) or a.has(sp.Subs, sp.Derivative) for a in slope):
        raise Unparsed(f"{expr} is not affine in the Gaussians")
    return tuple(map(sp.sympify, slope)), sp.sympify(expr.xreplace(dict.fromkeys(zs, sp.S.Zero)))


def _step(argument: sp.Expr, zs: tuple[sp.Symbol, ...], nu: sp.Expr = sp.S.Zero, order: int = 0) -> list[Term]:
    slope, offset = affine(argument, zs)
    if nu == 0:
        slope, offset, order_scale = _unit_slope(slope, offset, order)
    else:
        order_scale = sp.S.One
    return [replace(constant_term(len(zs), order_scale), forms=(Form(slope, offset, nu, order),))]


def _unit_slope(slope, offset, order):
    """A step keeps its value under positive scaling; scale the first slope of known sign to +-1."""
    lead = next(a for a in slope if a != 0)
    size = lead if lead.is_positive else -lead if lead.is_negative else None
    if size is None or size == 1:
        return slope, offset, sp.S.One
    return tuple(a / size for a in slope), offset / size, size ** (-order)


def _heaviside(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    return _step(expr.args[0], zs)


def _delta(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    return _step(expr.args[0], zs, order=1 + (int(expr.args[1]) if len(expr.args) > 1 else 0))


def _erf(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    (form,) = _step(expr.args[0], zs, nu=sp.Rational(1, 2))
    return [replace(form, coefficient=sp.Integer(2)), constant_term(len(zs), -sp.S.One)]


def _wave(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    slope, offset = affine(expr.args[0], zs)
    phase = offset if isinstance(expr, sp.cos) else offset - sp.pi / 2
    return [replace(constant_term(len(zs), sp.S.One), wave=(slope, phase))]


def _by_switch(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    """A kinked function of several Gaussians: both branches times the step of the switch."""
    switch, positive, negative = branches(expr)
    if not switch.has(*zs):
        raise Unparsed(f"{expr}: the branch depends on parameters alone")
    step = sp.Heaviside(sp.expand(switch), sp.Rational(1, 2))
    return _parse(negative + (positive - negative) * step, zs)


def _power(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    if expr.base.has(*zs) or not expr.base.is_positive:
        raise Unparsed(f"{expr}")
    return _exponential_of(expr.exp * sp.log(expr.base), zs)


def _exp(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    return _exponential_of(expr.args[0], zs)


def _exponential_of(argument: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[Term]:
    """exp of a quadratic: one Gaussian factor per negative square, which takes in the linear part of what it squares; a tilt for the rest.

    exp(-(z + b)^2) as a tilt by -2 b z would be far larger than the result, at a variance of 1e8 by 1e8.
    """
    if argument.has(*KINKED) or not argument.is_polynomial(*zs):
        raise Unparsed(f"exp({argument})")
    poly = sp.Poly(argument, *zs)
    if poly.total_degree() > 2:
        raise Unparsed(f"exp({argument})")
    n = len(zs)
    unit = [tuple(int(k == i) for k in range(n)) for i in range(n)]
    linear = tuple(poly.coeff_monomial(u) for u in unit)
    square = [[_second(poly, unit[i], unit[j]) for j in range(n)] for i in range(n)]
    term = replace(
        constant_term(n, sp.S.One), tilt=linear, constant=poly.coeff_monomial((0,) * n)
    )  # fmt: skip
    return [_with_squares(term, square, argument)]


def _second(poly: sp.Poly, u: tuple[int, ...], v: tuple[int, ...]) -> sp.Expr:
    c = poly.coeff_monomial(tuple(a + b for a, b in zip(u, v, strict=True)))
    return -2 * c if u == v else -c


def _with_squares(term: Term, square: list[list[sp.Expr]], argument: sp.Expr) -> Term:
    """exp(-z'Mz/2) as a product of Gaussian factors, by elimination (LDL')."""
    n = len(square)
    for i in range(n):
        m = square[i][i]
        if m == 0:
            if any(square[i]):
                raise Unparsed(f"exp({argument})")
            continue
        if m.is_negative:
            raise NoRule(
                f"E[exp({argument})] is infinite for Gaussians of large variance; "
                "an exponent may be quadratic only with a negative sign"
            )
        row, linear = tuple(a / m for a in square[i]), term.tilt[i]
        form = Form(row, -linear / m, 1 / m, 1)
        term = replace(
            term, coefficient=term.coefficient * sp.sqrt(2 * sp.pi / m), forms=(*term.forms, form),
            tilt=tuple(sp.S.Zero if j == i else b - linear * a for j, (b, a) in enumerate(zip(term.tilt, row, strict=True))),
            constant=term.constant + linear**2 / (2 * m),
        )  # fmt: skip
        square = [
            [square[a][b] - m * row[a] * row[b] for b in range(n)] for a in range(n)
        ]  # fmt: skip
    return term


_HEADS = {
    sp.exp: _exp, sp.Pow: _power, sp.Heaviside: _heaviside, sp.DiracDelta: _delta, sp.erf: _erf, sp.sin:
    _wave,
    sp.cos: _wave, sp.Max: _by_switch, sp.Min: _by_switch, sp.Abs: _by_switch, sp.sign: _by_switch,
    sp.Piecewise: _by_switch,
}  # fmt: skip
