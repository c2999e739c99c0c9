"""Hidden vectors between bounds that are no numbers: hyperparameters, or values of the input.

Which of two such bounds is the larger is not known, and with it neither where min(max(h, a), b) has its kinks nor in which order. Written as

    m + max(h - m, 0) - max(h - b, 0),  m = min(a, b),

it is a sum of functions with one kink each, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from ntk_rules import functions as nf
from tensorprog.frontend.build import constant, exact, lincomb, nonlin
from tensorprog.frontend.values import Var
from tensorprog.ir import Nonlin, Phi
from tensorprog.ir.phi import parameter, vector

__all__ = ["between_parameters"]

_DIFFERENCE = vector(0) - parameter(0)


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
