"""Counting powers of the width through a program, at initialisation and after steps of gradient descent.

Every variable has coordinates of a typical size n^p. A sum over the width of n terms of size n^q is n^(q + 1/2) where the terms are
independent with mean zero, as in W x with x made without W, and n^(q + 1) where they are not: in the update W - n^u dh x^T times x', whose
sum x . x' has terms of one sign, and in a readout of what training made of the readout itself (Yang and Hu 2021, Tensor Programs
IV, appendix F-H; the table of appendix A). The loss's derivative in the output counts as one. Sizes are those of generic inputs: what
cancels exactly is not seen, so that a power may be an upper bound.

An average over the width as output, f = (1/n) sum psi(h), has the size one, and gradients of the size 1/n whose terms have signs of
their own accord: unlike those of a readout, which has random weights, their sums over the width are aligned from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import mpmath
import sympy

from ntk_rules import functions as nf
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Const, LinComb, MatMul, Moment, Node, Nonlin, Phi, PositionMap, Program, Weight
from tensorprog.ir.phi import parameter

__all__ = ["NEVER", "Counts", "Power", "Scales", "count_powers", "over_width"]

Power = Fraction | float  # a float is an infinity
NEVER: float = -math.inf  # the power of what is zero
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scales:
    """How a weight scales: its entries start at the size n^start, and a step of gradient descent with the gradient g moves them by
    n^rate g."""

    start: Power
    rate: Power


@dataclass
class Counts:
    """Powers of n of every variable. initial: at initialisation. gradients: of the output's derivative in it, there. changes: after
    each step, how much it has changed; updates: how much of that its own weight's update makes (of a MatMul)."""

    initial: dict[Node, Power]
    gradients: dict[Node, Power]
    changes: list[dict[Node, Power]] = field(default_factory=list)
    updates: list[dict[Node, Power]] = field(default_factory=list)


def count_powers(program: Program, scales: Callable[[Node, Weight], Scales], steps: int = 2) -> Counts:
    """The powers of a program. scales: those of a weight as an instruction uses it (itself, where it is a vector)."""
    nodes = program.nodes
    of: dict[Node, Scales] = {
        node: scales(node, node.root if isinstance(node, MatMul) else node)
        for node in nodes
        if isinstance(node, (MatMul, Weight))
    }
    initial: dict[Node, Power] = {}
    for node in nodes:
        initial[node] = _initial(node, initial, of)
    largest = _gradients(program, initial, {}, of)
    counts = Counts(initial, largest)
    for _ in range(steps):
        change: dict[Node, Power] = {}
        update: dict[Node, Power] = {}
        for node in nodes:
            change[node] = _change(node, initial, change, update, largest, of)
        counts.changes.append(change)
        counts.updates.append(update)
        later = _gradients(program, initial, change, of, largest)
        largest = {node: max(later[node], largest[node]) for node in nodes}
    return counts


def _initial(node: Node, known: Mapping[Node, Power], of: Mapping[Node, Scales]) -> Power:
    match node:
        case Weight():
            return of[node].start
        case Const(value=value):
            return Fraction(0) if value.array().any() else NEVER
        case MatMul(x=x):
            return of[node].start + known[x] + (HALF if over_width(node) else 0)
        case LinComb(terms=terms):
            return max((_of(a, known) + known[x] for a, x in terms), default=NEVER)
        case PositionMap(args=args):
            return known[args[0]]
        case Nonlin(phi=phi, xs=xs, thetas=thetas) | Moment(phi=phi, xs=xs, thetas=thetas):
            return growth(phi, tuple(known[x] for x in (*xs, *thetas)))
    return Fraction(0)


def _change(
    node: Node, initial: Mapping[Node, Power], change: Mapping[Node, Power], update: dict[Node, Power], gradient: Mapping[Node, Power],
    of: Mapping[Node, Scales],
) -> Power:  # fmt: skip
    """How much a variable has changed: through what it is made of, and by its own weight's update."""
    match node:
        case Weight() if node.type.kind == "vector":
            update[node] = of[node].rate + gradient[node]
            return update[node]
        case MatMul(x=x):
            wide = over_width(node)
            passed = (Fraction(1) if node.type.width is None else HALF) if wide else Fraction(0)
            update[node] = of[node].rate + gradient[node] + 2 * max(initial[x], change[x]) + (1 if wide else 0)
            return max(of[node].start + passed + change[x], update[node])
        case LinComb(terms=terms):
            parts = [_of(a, initial) + change[x] for a, x in terms]
            parts += [change[a] + max(initial[x], change[x]) for a, x in terms if isinstance(a, Node)]
            return max(parts, default=NEVER)
        case PositionMap(args=args):
            return change[args[0]]
        case Nonlin(phi=phi, xs=xs, thetas=thetas) | Moment(phi=phi, xs=xs, thetas=thetas):
            args = (*xs, *thetas)
            return growth(phi, tuple(initial[x] for x in args), tuple(change[x] for x in args))
    return NEVER


def _gradients(
    program: Program, initial: Mapping[Node, Power], change: Mapping[Node, Power], of: Mapping[Node, Scales],
    before: Mapping[Node, Power] | None = None,
) -> dict[Node, Power]:  # fmt: skip
    """The powers of the output's derivative in every variable. before: the largest so far, of which the weights' updates are made."""
    size = {node: max(initial[node], change.get(node, NEVER)) for node in program.nodes}
    aligned = before is not None or program.output.type.kind == "scalar"
    found: dict[Node, Power] = dict.fromkeys(program.nodes, NEVER)
    found[program.output] = Fraction(0)

    def give(node: Node, power: Power) -> None:
        found[node] = max(found[node], power)

    for node in reversed(program.nodes):
        d = found[node]
        match node:
            case MatMul(x=x):
                rows = Fraction(0) if node.type.width is None else Fraction(1)
                give(x, of[node].start + rows / 2 + d)
                if before is not None:
                    give(x, of[node].rate + before[node] + size[x] + rows + d)
            case LinComb(terms=terms):
                for a, x in terms:
                    give(x, d + _of(a, size))
                    if isinstance(a, Node):
                        give(a, d + size[x] + _summed(node, aligned))
            case PositionMap(args=args):
                give(args[0], d)
            case Nonlin(phi=phi, xs=xs, thetas=thetas) | Moment(phi=phi, xs=xs, thetas=thetas):
                args = (*xs, *thetas)
                shared = Fraction(-1) if isinstance(node, Moment) else Fraction(0)
                for i, x in enumerate(args):
                    slope = growth(_slope(phi, i), tuple(size[y] for y in args))
                    is_theta = i >= len(xs) and bool(xs)
                    give(x, d + slope + shared + (_summed(node, aligned) if is_theta else 0))
    return found


def _summed(node: Node, aligned: bool) -> Fraction:
    """The derivative in a number that all coordinates share is a sum over them: below a readout, of independent terms at
    initialisation."""
    if isinstance(node, Moment):
        return Fraction(1)
    if node.type.width is None:
        return Fraction(0)
    return Fraction(1) if aligned else HALF


def _of(a: float | Node, known: Mapping[Node, Power]) -> Power:
    return known[a] if isinstance(a, Node) else Fraction(0) if a else NEVER


def over_width(node: MatMul) -> bool:
    """Does it sum over a width?"""
    letters, _, out = node.letters
    return any(w is not None and c not in out for c, w in zip(letters, node.root.widths, strict=True))


# ------------------------------------------------------------------------------------------ functions


@lru_cache(maxsize=4096)
def _slope(phi: Phi, i: int) -> Phi:
    if i < phi.n_vectors:
        return Phi(phi.diff(i), phi.n_vectors, phi.n_parameters)
    return Phi(sympy.diff(phi.expr, parameter(i - phi.n_vectors)), phi.n_vectors, phi.n_parameters)


AT = (mpmath.mpf(10) ** 60, mpmath.mpf(10) ** 180)  # large widths, at which the function is tried
GENERIC = (
    (0.83, -0.41, 1.37, -1.13),
    (-0.67, 1.21, -0.94, 0.53),
    (1.51, 0.77, 0.61, 1.09),
    (-1.03, -0.59, -1.67, -0.71),
)


@lru_cache(maxsize=4096)
def growth(phi: Phi, powers: tuple[Power, ...], changes: tuple[Power, ...] | None = None) -> Power:
    """The power of n of phi(z), with z_i of the size n^powers_i; with `changes`, of phi(z + dz) - phi(z)."""
    if phi.expr == 0 or (changes is not None and all(c == NEVER for c in changes)):
        return NEVER
    if math.inf in powers or (changes is not None and math.inf in changes):
        return math.inf
    function = _function(phi)
    found = [power for signs in GENERIC if (power := _tried(function, signs, powers, changes)) is not None]
    if not found:
        raise UnsupportedError(
            explain(
                f"no power of the width for {phi}", reason="it is no real number at generic arguments of these sizes",
                mend="count powers of a network without this function",
            )
        )  # fmt: skip
    return max(found)


def _tried(
    function: Callable[..., mpmath.mpf],
    signs: Sequence[float],
    powers: Sequence[Power],
    changes: Sequence[Power] | None,
) -> Power | None:
    """The slope of log |phi| against log n at large n, for arguments of these signs; None where phi is not defined there, as a
    norm of negative squares."""
    at = lambda n, which, shift: [
        mpmath.mpf(signs[(i + shift) % len(signs)]) * _power(n, p) for i, p in enumerate(which)
    ]
    sizes = [float(p) for p in (*powers, *(changes or ())) if abs(p) != math.inf]
    with mpmath.workdps(
        60 + int(400 * (max(sizes, default=0.0) - min(sizes, default=0.0) + 0.5))
    ):  # also of a square of a change
        values = []
        for n in AT:
            z = at(n, powers, 0)
            try:
                value = function(*z)
                if changes is not None:
                    value = function(*(a + b for a, b in zip(z, at(n, changes, 1), strict=True))) - value
            except ZeroDivisionError:
                return None
            if isinstance(value, mpmath.mpc):
                return None
            values.append(abs(mpmath.mpf(value)))
        if not values[1] or not values[0]:
            return NEVER
        slope = mpmath.log(values[1] / values[0]) / mpmath.log(AT[1] / AT[0])
        grid = 2 * math.lcm(1, *(p.denominator for p in (*powers, *(changes or ())) if isinstance(p, Fraction)))
        return (math.inf if slope > 0 else NEVER) if abs(slope) > 50 else Fraction(round(slope * grid), grid)


def _power(n: mpmath.mpf, power: Power) -> mpmath.mpf:
    return (
        mpmath.mpf(0) if power == NEVER else n ** (mpmath.mpf(Fraction(power).numerator) / Fraction(power).denominator)
    )


@lru_cache(maxsize=4096)
def _function(phi: Phi) -> Callable[..., mpmath.mpf]:
    plain = nf.value_of(phi.expr).replace(sympy.Heaviside, lambda x, *_: sympy.Piecewise((1, x > 0), (0, True)))
    return sympy.lambdify((*phi.vectors, *phi.parameters), plain, "mpmath")
