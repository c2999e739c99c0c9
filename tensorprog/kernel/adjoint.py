"""The neural tangent kernel from an adjoint program: a sum over trained weights and over pairs of their uses.

    tangent_std^2 sum_W sum_{y = W z} sum_{y' = W z'} E[dy dy'] E[z z']        (Yang, Tensor Programs II, theorem 2.1)

in the letters of einsum: the axes of the weight are the same on both sides, other positions belong to one of them. Where one use is of
the transpose, y' = W'z', it is E[dy z'] E[z dy'] instead; of a symmetric weight both terms are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tensorprog.ir import Const, Literal, Node
from tensorprog.kernel.graph import Operand, Quantity, is_zero
from tensorprog.kernel.questions import LETTERS, Question, Work, answer, ask, combine, contract
from tensorprog.kernel.rules import Rules
from tensorprog.passes.adjoint import Adjoint, Use

__all__ = ["gradient_kernel"]

_ONE = Const(Literal.of(np.ones(())))


def gradient_kernel(
    a: Adjoint, b: Adjoint, cross: bool, rules: Rules, memo: dict[Question, Quantity], only: str | None = None
) -> Quantity:
    """The kernel between the entries of two outputs, with the lead axes of either. cross: of two inputs. only: the part of the
    parameter of this name."""
    terms = []
    for u in a.uses:
        for v in b.uses:
            if u.weight is v.weight and only in (None, u.weight.name):
                for turned in (False, True) if u.weight.symmetric else (False,):
                    terms.append(
                        (1.0, _run(_pair(_lettered(u, v, len(a.lead), len(b.lead), turned), cross), rules, memo))
                    )
    return combine(terms, (*a.lead, *b.lead), cross)


def _run(work: Work[Quantity], rules: Rules, memo: dict[Question, Quantity]) -> Quantity:
    """What comes of some work, whose questions are answered one after the other."""
    given: Quantity | None = None
    while True:
        try:
            given = answer(work.send(given), rules, memo)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value


@dataclass(frozen=True)
class _Lettered:
    """Two uses in common letters. sides: for each use the vectors and their letters, dy first; lead: the letters of the result."""

    u: Use
    v: Use
    sides: tuple[tuple[tuple[Node, str], tuple[Node, str]], ...]
    weight: tuple[str, str]
    lead: str
    sizes: dict[str, int]


def _lettered(u: Use, v: Use, lead_u: int, lead_v: int, turned: bool) -> _Lettered:
    """turned: swap the width axes of the second use, for a symmetric weight."""
    spare = iter(LETTERS)
    axes = [next(spare) for _ in u.weight.shape]
    other = list(axes)
    if turned:
        i, j = u.weight.matrix_axes  # type: ignore[misc]
        other[i], other[j] = axes[j], axes[i]
    sizes: dict[str, int] = dict(zip(axes, u.weight.shape, strict=True))
    sides, leads = [], ""
    for use, own, count in ((u, axes, lead_u), (v, other, lead_v)):
        w, z, made = use.letters
        names = dict(zip(w, own, strict=True))
        for c in z + made:
            if c not in names:
                names[c] = next(spare)
        lead = "".join(next(spare) for _ in range(count))
        leads += lead
        pair = (use.dy, lead + "".join(names[c] for c in made)), (use.z or _ONE, "".join(names[c] for c in z))
        for node, letters in pair:
            sizes |= zip(letters, node.type.shape, strict=True)
        sides.append(pair)
    return _Lettered(u, v, tuple(sides), ("".join(axes), "".join(other)), leads, sizes)


def _pair(q: _Lettered, cross: bool) -> Work[Quantity]:
    (dy, z), (dy2, z2) = q.sides
    factors = [(dy, z2), (z, dy2)] if _crossed(q) else [(dy, dy2), (z, z2)]
    needed = lambda k: set("".join(letters for _, letters in factors[1 - k])) | set(q.lead)
    shape = tuple(q.sizes[c] for c in q.lead)
    weight, scale = q.u.weight, q.u.weight.tangent_std**2
    present = set("".join(letters for factor in factors for _, letters in factor))
    for c, n, width in zip(q.weight[0], weight.shape, weight.widths, strict=True):
        scale *= float(width or 1) * (n if c not in present else 1)
    found, specs = [], []
    for k, ((x, lx), (y, ly)) in enumerate(factors):
        out = "".join(c for c in dict.fromkeys(lx + ly) if c in needed(k) and q.sizes[c] > 1)
        if isinstance(x, Const) and isinstance(y, Const) and not out:
            scale *= float(np.einsum(f"{lx},{ly}->", x.value.array(), y.value.array()))
            continue
        made = yield from ask(x, lx, y, ly, out, cross)
        if is_zero(made):
            return contract(f"->{q.lead}", [Operand(made)], shape, cross)
        found.append(Operand(made))
        specs.append(out)
    return contract(f"{','.join(specs)}->{q.lead}", found, shape, cross, scale)


def _crossed(q: _Lettered) -> bool:
    """Does the gradient of one use run along the weight's axis that the vector of the other has?"""
    widths = [i for i, w in enumerate(q.u.weight.widths) if w is not None]
    made = [set(side[0][1]) for side in q.sides]
    first = [q.weight[0][i] for i in widths]
    return any((c in made[0]) != (c in made[1]) for c in first)
