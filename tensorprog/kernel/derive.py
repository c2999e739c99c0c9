"""From a program and its tangent program, or its adjoint program, to the kernel graph of NNGP and NTK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tensorprog.ir import Program
from tensorprog.kernel.adjoint import gradient_kernel
from tensorprog.kernel.graph import Operand, Quantity, Zero, quantities
from tensorprog.kernel.questions import LETTERS, Question, Second, answer, answered, contract
from tensorprog.kernel.rules import Rules
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.structure import Structure

__all__ = ["KernelGraph", "derive"]


@dataclass(frozen=True)
class KernelGraph:
    """What is to be computed for a kernel.

    nngp, ntk: E[f(x) f(x')] and the neural tangent kernel; nngp_self, ntk_self: the same at x' = x. Axes: those of the output
    along which its entries differ in law (first of f(x), then of f(x')), and, at the places `mirrored`, axes of
    identical copies. noise: is anything drawn anew for every input, so that equal inputs are still two? answers: the questions
    that each quantity answers, for the reader.
    """

    nngp: Quantity
    ntk: Quantity
    nngp_self: Quantity
    ntk_self: Quantity
    mirrored: tuple[int, ...]
    shape: tuple[int, ...]
    noise: bool = False
    answers: Mapping[Quantity, Sequence[Question]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def outputs(self) -> tuple[Quantity, Quantity, Quantity, Quantity]:
        return self.nngp, self.ntk, self.nngp_self, self.ntk_self

    @cached_property
    def nodes(self) -> tuple[Quantity, ...]:
        """Every quantity, operands first."""
        return tuple(quantities(self.outputs))

    def __len__(self) -> int:
        return len(self.nodes)


def derive(
    program: Program, moved: Program | Adjoint | None, tolerance: float | None = None, apart: bool = True
) -> KernelGraph:
    """Ask the rules for the covariances of the output, and for the neural tangent kernel. moved: the tangent program, or the
    gradients of the adjoint program; None where nothing is trained. tolerance: that of numerical expectations. apart: where
    tangents are multiplied with what has to be sampled, are they written as sums of their Gaussians (`tensorprog.kernel.linear`)? If not they
    are sampled with it: less exact, but the same in every layer.

    Raises UnsupportedError where no rule answers.
    """
    further = moved.nodes if isinstance(moved, Adjoint) else [] if moved is None else [moved.output]
    rules = Rules(Structure([program.output, *further]), tolerance, apart)
    memo: dict[Question, Quantity] = {}
    shape = program.output.type.shape
    copies = [i for i in program.mirrored if shape[i] > 1]
    own = [i for i, n in enumerate(shape) if n > 1 and i not in copies]
    kernel_shape = tuple(shape[i] for i in own)
    kept = sorted([*copies, *own])  # the letters of an answer are numbered by where they stand in the output

    def second(which: Program, cross: bool) -> Quantity:
        letters = iter(LETTERS)
        lead = {i: next(letters) for i in copies}
        lu = {i: next(letters) for i in own}
        lv = {i: next(letters) for i in own}
        left = "".join(lead.get(i) or lu.get(i) or "1" for i in range(len(shape)))
        right = "".join(lead.get(i) or lv.get(i) or "1" for i in range(len(shape)))
        out = "".join([*lead.values(), *lu.values(), *lv.values()])
        return answer(_canonical(Second(which.output, which.output, cross, left, right, out)), rules, memo)

    def of_gradients(which: Adjoint, cross: bool) -> Quantity:
        """Their kernel, the same for all copies."""
        letters = iter(LETTERS)
        at = {i: next(letters) for i in kept}
        lv = [next(letters) for _ in own]
        inner = "".join([*(at[i] for i in own), *lv])
        found = gradient_kernel(which, which, cross, rules, memo)
        full = (*(shape[i] for i in kept), *kernel_shape)
        return contract(f"{inner}->{''.join([*at.values(), *lv])}", [Operand(found)], full, cross)

    def tangent_kernel(cross: bool) -> Quantity:
        if moved is None:
            return Zero((*(shape[i] for i in kept), *kernel_shape))
        return of_gradients(moved, cross) if isinstance(moved, Adjoint) else second(moved, cross)

    ntk, ntk_self = tangent_kernel(True), tangent_kernel(False)
    nngp, nngp_self = second(program, True), second(program, False)
    noise = any(weight.per_input for weight in program.weights)
    places = tuple(map(kept.index, copies))
    return KernelGraph(nngp, ntk, nngp_self, ntk_self, places, kernel_shape, noise, answered(memo))


def _canonical(q: Second) -> Second:
    """Letters numbered by first appearance, as every question has them. The order of `out` is kept: it is already
    sorted."""
    names: dict[str, str] = {"1": "1"}
    for c in q.lu + q.lv:
        if c not in names:
            names[c] = LETTERS[len(names) - 1]
    swap = lambda letters: "".join(names[c] for c in letters)
    return Second(q.u, q.v, q.cross, swap(q.lu), swap(q.lv), "".join(sorted(swap(q.out))))
