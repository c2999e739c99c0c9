"""Hidden vectors between bounds that are no numbers: hyperparameters, or values of the input.

Which of two such bounds is the larger is not known, and with it neither where min(max(h, a), b) has its kinks nor in which order. Written as

    m + max(h - m, 0) - max(h - b, 0),  m = min(a, b),

it is a sum of functions with one kink each, whichever it is. So are the modulus above a bound a, whose sign is not known either, and the
soft threshold that is made of it,

    max(|h|, a) = m + max(h - m, 0) + max(-h - m, 0),  m = max(a, 0)
    sign(h) max(|h| - a, 0) = max(h - m, 0) - max(-h - m, 0) + (m - a) sign(h)
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from ntk_rules import functions as nf
from tensorprog.frontend.build import constant, exact, lincomb, nonlin, scaled
from tensorprog.frontend.values import Var
from tensorprog.ir import LinComb, Node, Nonlin, Phi
from tensorprog.ir.phi import parameter, snap, vector

__all__ = ["between_parameters", "folded", "signed"]

_DIFFERENCE = vector(0) - parameter(0)
_HALF = sympy.Rational(1, 2)


def between_parameters(name: str, variables: Sequence[Var]) -> Var | None:
    """What `max`, `min` or `clamp` make of a hidden vector between two bounds, one of which is no number; None for anything else."""
    if name == "clamp":
        low, h, high = variables
        if not h.random or low.random or high.random or all(exact(b) is not None for b in (low, high)):
            return None
        return _clipped(h, low, high, 0)
    if name not in ("max", "min") or sum(v.random for v in variables) != 1 or any(v.power for v in variables):
        return None
    outer, inner = sorted(variables, key=lambda v: v.random)
    found = _one_bound(inner, sympy.Min if name == "max" else sympy.Max)
    if found is None or all(exact(b) is not None for b in (outer, found[1])):
        return None
    h, bound = found
    half = sympy.Rational(1, 2)
    if name == "min":
        return _clipped(h, bound, outer, half)
    turned = _clipped(_turned(h), _turned(bound), _turned(outer), half)
    return _turned(turned)


# ------------------------------------------------------------------------------------------ moduli


def folded(name: str, variables: Sequence[Var], at_bound: sympy.Expr = _HALF) -> Var | None:
    """What `max` or `min` make of c |h| + d and a bound that is no number, or where d is none; None for anything else. at_bound: the slope
    of max(u, 0) at zero."""
    if name not in ("max", "min") or sum(v.random for v in variables) != 1 or any(v.power for v in variables):
        return None
    bound, u = sorted(variables, key=lambda v: v.random)
    found = _of_modulus(u)
    if found is None:
        return None
    c, h, shift = found
    gap = bound if shift is None else lincomb([(1.0, bound), (-1.0, shift)])
    least = nonlin(Phi(parameter(0) / snap(c), 0, 1), [], [gap])
    if exact(bound) is not None and (shift is None or exact(shift) is not None):
        return None
    at = at_bound if c > 0 else 1 - at_bound
    inside = nonlin(Phi(sympy.Max(parameter(0), 0), 0, 1), [], [least])
    sides = [nonlin(_beyond(at), [v], [inside]) for v in (h, _turned(h))]
    terms = [(1.0, inside), *((1.0, side) for side in sides)]
    if (name == "max") != (c > 0):  # min(a, b) = a + b - max(a, b)
        modulus = nonlin(Phi(sympy.Abs(vector(0)), 1), [h], [])
        terms = [(1.0, modulus), (1.0, least), *((-a, v) for a, v in terms)]
    return lincomb([*((c * a, v) for a, v in terms), *([] if shift is None else [(1.0, shift)])])


def _of_modulus(var: Var) -> tuple[float, Var, Var | None] | None:
    """c, h and d, where a variable is c |h| + d with a deterministic d, of which None stands for zero."""
    if len(var.blocks) != 1:
        return None
    terms = var.node.terms if isinstance(var.node, LinComb) else ((1.0, var.node),)
    hidden = [(a, x) for a, x in terms if x.type.kind == "vector"]
    if len(hidden) != 1 or any(isinstance(a, Node) for a, _ in terms):
        return None
    ((c, x),) = hidden
    if not (isinstance(x, Nonlin) and x.phi.expr == sympy.Abs(vector(0)) and x.type == var.node.type):
        return None
    shifts = [(float(a), _laid(d, var)) for a, d in terms if d is not x]  # type: ignore[arg-type]
    return float(c), var.with_blocks([x.xs[0]]), lincomb(shifts) if shifts else None  # type: ignore[arg-type]


def _laid(node: Node, like: Var) -> Var:
    """A deterministic term of a variable."""
    shape = node.type.shape
    layout = like.layout[len(like.layout) - len(shape) :]
    return Var.of(node, tuple(axis if n != 1 else () for axis, n in zip(layout, shape, strict=True)))


def signed(name: str, variables: Sequence[Var]) -> Var | None:
    """sign(h) times what `folded` made of |h| with a positive slope; None for anything else."""
    if name != "mul" or len(variables) != 2 or any(len(v.blocks) != 1 or not v.random or v.power for v in variables):
        return None
    for sign, even in (variables, variables[::-1]):
        one, total = sign.node, even.node
        if not (isinstance(one, Nonlin) and one.phi.expr == sympy.sign(vector(0)) and isinstance(total, LinComb)):
            continue
        if total.type != one.type or any(isinstance(a, Node) for a, _ in total.terms):
            continue
        h = sign.with_blocks([one.xs[0]])
        sides, rest = {h.node: 1.0, _turned(h).node: -1.0}, []
        terms: list[tuple[float, Var]] = []
        for a, x in total.terms:
            if x.type.kind != "vector":
                rest.append((float(a), _laid(x, even)))  # type: ignore[arg-type]
            elif isinstance(x, Nonlin) and len(x.xs) == 1 and x.xs[0] in sides and _is_outside(x):
                terms.append((sides[x.xs[0]] * float(a), even.with_blocks([x])))  # type: ignore[arg-type]
            else:
                break
        else:
            return lincomb([*terms, *([(1.0, scaled(sign, lincomb(rest)))] if rest else [])]) if terms else None
    return None


def _is_outside(node: Nonlin) -> bool:
    """Is it max(h - m, 0), m not negative?"""
    (bound, *more) = node.thetas or (None,)
    known = isinstance(bound, Nonlin) and bound.phi.expr == sympy.Max(parameter(0), 0)
    return known and not more and nf.value_of(node.phi.expr) == sympy.Max(_DIFFERENCE, 0)


def _turned(var: Var) -> Var:
    return lincomb([(-1.0, var)]) if var.random else nonlin(Phi(-parameter(0), 0, 1), [], [var], var.power)


def _one_bound(var: Var, kind: type[sympy.Max] | type[sympy.Min]) -> tuple[Var, Var] | None:
    """h and a, where a variable is the maximum, or minimum, of a hidden vector h and a deterministic a."""
    parts = []
    for _, node in var.blocks:
        if not (
            isinstance(node, Nonlin) and len(node.xs) == 1 and len(node.thetas) <= 1 and isinstance(node.phi.expr, kind)
        ):
            return None
        args = node.phi.expr.args
        z, rest = vector(0), [x for x in args if x != vector(0)]
        if len(args) != 2 or len(rest) != 1 or rest[0].has(z):
            return None
        parts.append((node.xs[0], node.thetas, rest[0]))
    if any(part[1:] != parts[0][1:] for part in parts):
        return None
    _, thetas, rest = parts[0]
    layout = var.layout[len(var.layout) - len(thetas[0].type.shape) :] if thetas else ()
    layout = tuple(
        axis if n != 1 else () for axis, n in zip(layout, thetas[0].type.shape if thetas else (), strict=True)
    )
    bound = nonlin(Phi(rest, 0, 1), [], [Var.of(thetas[0], layout)]) if thetas else constant(float(rest), ())
    return var.with_blocks([h for h, _, _ in parts]), bound


def _clipped(h: Var, low: Var, high: Var, at_low: sympy.Expr) -> Var:
    """min(max(h, low), high), with the slope `at_low` at its lower bound, and the same at the upper one."""
    least = nonlin(Phi(sympy.Min(parameter(0), parameter(1)), 0, 2), [], [low, high])
    above = nonlin(_beyond(at_low), [h], [least])
    beyond = nonlin(_beyond(1 - at_low), [h], [high])
    return lincomb([(1.0, least), (1.0, above), (-1.0, beyond)])


def _beyond(at_bound: sympy.Expr) -> Phi:
    """max(h - a, 0), with that slope at a."""
    value = sympy.Max(_DIFFERENCE, 0)
    if at_bound == sympy.Rational(1, 2):
        return Phi(value, 1, 1)
    return Phi(nf.by_rule(value, vector(0), sympy.Heaviside(_DIFFERENCE, at_bound)), 1, 1)
