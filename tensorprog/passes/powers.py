"""Counting powers of the width through a program, at initialisation and after steps of gradient descent.

Every variable has coordinates of a typical size n^p. A sum over the width of n terms of size n^q is n^(q + 1/2) where the terms are
independent with mean zero, as in W x with x made without W, and n^(q + 1) where they are not: in the update W - n^u dh x^T times x', whose
sum x . x' has terms of one sign, and in a readout of what training made of the readout itself (Yang and Hu 2021, Tensor Programs
IV, appendix F-H; the table of appendix A). The loss's derivative in the output counts as one. Sizes are those of generic inputs: what
cancels exactly is not seen, so that a power may be an upper bound.

A readout whose weight is also a part of the vector that it reads, v.phi(v + h), sums terms v_i phi(v_i + h_i) of one sign: those of the
size n^q add to n^(q + 1), unless they are odd in v (`passes.tied`). Where a weight is used more than once, the gradient of each use
moves all of them; W dx and W^T dx of an update dW = dh2 x2^T have the size of dh2 x2 times dx, whichever way round.

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
from tensorprog.passes.structure import Structure
from tensorprog.passes.tied import symmetric_law

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
    ties = _ties(program)
    initial: dict[Node, Power] = {}
    for node in nodes:
        initial[node] = _initial(node, initial, of, ties)
    largest = _gradients(program, initial, {}, of, ties)
    counts = Counts(initial, largest)
    for _ in range(steps):
        known = counts.changes[-1] if counts.changes else {}
        size = {node: max(initial[node], known.get(node, NEVER)) for node in nodes}
        change: dict[Node, Power] = {}
        update: dict[Node, Power] = {}
        for node in nodes:
            change[node] = _change(node, initial, change, update, size, largest, of, ties)
        counts.changes.append(change)
        counts.updates.append(update)
        later = _gradients(program, initial, change, of, ties, largest)
        largest = {node: max(later[node], largest[node]) for node in nodes}
    return counts


@dataclass(frozen=True)
class _Ties:
    """uses: of every weight by its name and the part of it, the instructions that use it (itself, as a vector). readouts: those of
    what their own weight is a part of."""

    uses: Mapping[tuple[object, ...], tuple[Node, ...]]
    readouts: frozenset[Node]

    def beside(self, node: Node) -> tuple[Node, ...]:
        return self.uses[_part(node)]


def _part(node: Node) -> tuple[object, ...]:
    weight = node.root if isinstance(node, MatMul) else node
    assert isinstance(weight, Weight)
    return weight.name, weight.region


def _ties(program: Program) -> _Ties:
    uses: dict[tuple[object, ...], list[Node]] = {}
    for node in program.nodes:
        if isinstance(node, (MatMul, Weight)):
            uses.setdefault(_part(node), []).append(node)
    tied: frozenset[Node] = frozenset()
    if program.output.type.kind == "vector" and not symmetric_law([program.output]):
        facts = Structure([program.output])
        tied = frozenset(
            node for node in program.nodes
            if isinstance(node, MatMul) and node.type.width is None and node.x.type.kind == "vector"
            and any(name == node.root.name for name, *_ in facts[node.x].roots)
        )  # fmt: skip
    return _Ties({part: tuple(nodes) for part, nodes in uses.items()}, tied)


def _initial(node: Node, known: Mapping[Node, Power], of: Mapping[Node, Scales], ties: _Ties) -> Power:
    match node:
        case Weight():
            return of[node].start
        case Const(value=value):
            return Fraction(0) if value.array().any() else NEVER
        case MatMul(x=x):
            summed = Fraction(1) if node in ties.readouts else HALF if over_width(node) else Fraction(0)
            return of[node].start + known[x] + summed
        case LinComb(terms=terms):
            return max((_of(a, known) + known[x] for a, x in terms), default=NEVER)
        case PositionMap(args=args):
            return known[args[0]]
        case Nonlin(phi=phi, xs=xs, thetas=thetas) | Moment(phi=phi, xs=xs, thetas=thetas):
            return growth(phi, tuple(known[x] for x in (*xs, *thetas)))
    return Fraction(0)


def _change(
    node: Node, initial: Mapping[Node, Power], change: Mapping[Node, Power], update: dict[Node, Power], size: Mapping[Node, Power],
    gradient: Mapping[Node, Power], of: Mapping[Node, Scales], ties: _Ties,
) -> Power:  # fmt: skip
    """How much a variable has changed: through what it is made of, and by its own weight's update. size, gradient: before this step."""
    match node:
        case Weight() if node.type.kind == "vector":
            update[node] = max(_moved(node, use, gradient, size, of) for use in ties.beside(node))
            return update[node]
        case MatMul(x=x):
            wide = over_width(node)
            passed = (Fraction(1) if node.type.width is None else HALF) if wide else Fraction(0)
            moved = max(_moved(node, use, gradient, size, of) for use in ties.beside(node))
            update[node] = moved + max(initial[x], change[x]) + (1 if wide else 0)
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


def _moved(
    node: Node, use: Node, gradient: Mapping[Node, Power], size: Mapping[Node, Power], of: Mapping[Node, Scales]
) -> Power:
    """How much the gradient of one use of a weight moves its entries, as an instruction reads them; in the vectors that they are an
    outer product of."""
    rates = of[node].rate, of[use].rate
    if NEVER in rates:
        return NEVER
    return sum(rates) / 2 + gradient[use] + (size[use.x] if isinstance(use, MatMul) else 0)


def _gradients(
    program: Program, initial: Mapping[Node, Power], change: Mapping[Node, Power], of: Mapping[Node, Scales], ties: _Ties,
    before: Mapping[Node, Power] | None = None,
) -> dict[Node, Power]:  # fmt: skip
    """The powers of the output's derivative in every variable. before: the largest so far, of which the weights' updates are made."""
    size = {node: max(initial[node], change.get(node, NEVER)) for node in program.nodes}
    aligned = before is not None or program.output.type.kind == "scalar" or bool(ties.readouts)
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
                    moved = max(_moved(node, use, before, size, of) for use in ties.beside(node))
                    give(x, moved + rows + d)
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
    if phi.expr.has(*nf.JAX_ALONE):
        raise UnsupportedError(
            explain(
                f"no power of the width for {phi}", reason="a function in it is known to JAX alone",
                mend="count powers of a network without this function",
            )
        )  # fmt: skip
    plain = nf.elementary(nf.value_of(phi.expr)).replace(
        sympy.Heaviside, lambda x, *_: sympy.Piecewise((1, x > 0), (0, True))
    )
    return sympy.lambdify((*phi.vectors, *phi.parameters), plain, "mpmath")
