"""Which program the neural tangent kernel is taken from: the tangent program or the adjoint program, and why.

The tangent program (`passes.tangent`) is the shorter way, where its conditions hold: a readout of independent Gaussian weights, or an
average over the width whose trained coordinates move independently. The adjoint program (`passes.adjoint`) holds for all of
these, and for averages of deep networks and readouts that are tied to other weights; it has a backward pass for every entry of the
output, and pairs of uses where a weight is used often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tensorprog.errors import InputError, UnsupportedError
from tensorprog.ir import Program
from tensorprog.passes.adjoint import Adjoint, adjoint, beside
from tensorprog.passes.averages import average_of, average_refusal, refusal
from tensorprog.passes.conditions import check_conditions, check_readouts
from tensorprog.passes.dots import Dot, expose_nodes
from tensorprog.passes.fuse import fuse, fuse_gradients
from tensorprog.passes.scalars import check_scalars
from tensorprog.passes.tangent import tangent
from tensorprog.passes.tied import summands

__all__ = [
    "METHODS",
    "Method",
    "Moved",
    "check_method",
    "choose",
    "is_average",
    "moved_by",
    "output_program",
    "prepared",
]

METHODS = ("auto", "tangent", "adjoint")
_READOUT = "the readout's weights are independent Gaussians, used for nothing else"
_AVERAGE = "every coordinate of the average moves with parameters of its own alone"


@dataclass(frozen=True)
class Method:
    """The way that is taken, "tangent" or "adjoint", and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Moved:
    """What the neural tangent kernel is asked of, with every Zdot written out: a tangent program or gradients; the one or the
    other before that; and the terms that transposes add."""

    exposed: Program | Adjoint
    source: Program | Adjoint
    dots: tuple[Dot, ...]


def check_method(method: str, where: str) -> None:
    """Refuse a name that is none of `METHODS`."""
    if method not in METHODS:
        raise InputError(f"{where}: method is {method!r}, expected one of {', '.join(map(repr, METHODS))}")


def is_average(program: Program) -> bool:
    """Is the output an average over the width, which is deterministic in the limit?"""
    return program.output.type.kind == "scalar"


def prepared(program: Program) -> Program:
    """A program as it was traced, fused. Where gradients of averages count, averages are kept that are zero in the limit.

    Raises UnsupportedError for functions that jump where averages are zero.
    """
    check_scalars(program)
    if is_average(program):
        return fuse(program, keep_means=True)
    fused = fuse(program)
    if _refusal_of_tangent(fused) is None:
        return fused
    return fuse(replace(program, mirrored=()), keep_means=True)  # features of a tied readout depend on each other


def choose(program: Program, method: str = "auto") -> Method:
    """The way to the neural tangent kernel of a prepared program.

    Raises UnsupportedError where the method asked for, or for "auto" either, does not hold.
    """
    check_readouts(program)
    refused = _refusal_of_tangent(program)
    if method == "adjoint":
        return Method("adjoint", "asked for")
    if refused is None:
        held = _AVERAGE if is_average(program) else _READOUT
        return Method("tangent", held if method == "auto" else f"asked for; {held}")
    if method == "tangent":
        raise refused
    first, *rest = str(refused).splitlines()
    reason = next(line.split(": ", 1)[1] for line in rest if line.startswith("  reason: "))
    return Method(
        "adjoint", f"the tangent program does not hold: {reason if is_average(program) else f'{first}; {reason}'}"
    )


def _refusal_of_tangent(program: Program) -> UnsupportedError | None:
    """Why the covariance of the tangent program is not the neural tangent kernel; None where it is."""
    if not is_average(program):
        try:
            check_conditions(program)
        except UnsupportedError as error:
            return error
        return None
    if not any(weight.tangent_std for weight in program.weights):
        return None
    reason = average_refusal(program) if average_of(program) is not None else "it is a nonlinear function of averages"
    return None if reason is None else refusal("output", reason)


def output_program(program: Program) -> Program:
    """The program of whose output the covariance is that of the network's, in the limit."""
    return program if is_average(program) or _refusal_of_tangent(program) is None else summands(program)


def moved_by(
    program: Program, method: str, only: str | None = None, copies: tuple[int, ...] | None = None, shared: tuple[str, ...] = ()
) -> Moved | None:  # fmt: skip
    """The tangent program, or the gradients, of a prepared program; None where nothing is trained. only: the one parameter that
    moves in a tangent program. copies: as for `passes.adjoint.adjoint`. shared: as for `passes.adjoint.beside`."""
    if method == "adjoint":
        return _gradients(program, copies, shared)
    source: Program | None = program
    if is_average(program):
        source = average_of(program)
    made = None if source is None else tangent(fuse(source), only)
    if made is None:
        return None
    made = fuse(made, drop_zeros=True)
    new, dots = expose_nodes([made.output])
    return Moved(replace(made, output=new[made.output]), made, dots)


def _gradients(program: Program, copies: tuple[int, ...] | None, shared: tuple[str, ...]) -> Moved | None:
    found = adjoint(program, copies)
    if not found.uses:
        return None
    if shared:
        found = beside(found, shared)
    fused = fuse_gradients([found.output, *found.nodes])
    made = found.renamed(fused.__getitem__)
    new, dots = expose_nodes(list(dict.fromkeys([made.output, *made.nodes])))
    return Moved(made.renamed(new.__getitem__), made, dots)
