"""Are variances so large that quadrature no longer follows a function? Then the kernel is refused rather than wrong.

A function without closed form is integrated by rules of a fixed size. Up to which variance their error stays below `ntk_rules.method.NEAR`
is found when the rule is derived; inputs with larger ones are refused, whatever correlation their pairs have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tensorprog.errors import InputError, explain
from tensorprog.kernel.graph import Expect, Quantity
from tensorprog.lower.run import Slots

__all__ = ["strained", "variances_of"]


def variances_of(found: Iterable[Quantity]) -> list[tuple[Expect, tuple[Quantity, ...]]]:
    """The expectations whose variances are to be looked at, and what holds these, a quantity of one input each."""
    out = []
    for q in found:
        if isinstance(q, Expect) and np.isfinite(q.expectation.holds(double=False)):
            places = zip(q.expectation.needs, q.operands, strict=False)
            own = tuple(
                dict.fromkeys(o.quantity for (i, j), o in places if i == j and (o.side is not None or not q.cross))
            )
            out += [(q, own)] if own else []
    return out


def strained(looked_at: Sequence[tuple[Expect, tuple[Quantity, ...]]], slots: Slots) -> Callable[..., None] | None:
    """A check of the states of many inputs, which raises InputError; None where nothing is to be looked at.

    looked_at: from `variances_of`; the state keeps these variances. own: are inputs met with themselves alone? Then expectations of one
    Gaussian variable are asked, which follow far larger variances than those of pairs.
    """
    of: dict[Any, tuple[Expect, dict[Quantity, None]]] = {}
    for q, own in looked_at:
        of.setdefault(q.expectation, (q, {}))[1].update(dict.fromkeys(own))
    read = list(of.values())
    if not read:
        return None

    def largest(states: Any, own: dict[Quantity, None]) -> Any:
        return max(np.max(np.asarray(slots.of_all(states, v))) for v in own)

    def check(states: Any, own: bool = False) -> None:
        for q, variables in read:
            if own and q.cross:
                continue
            variance = largest(states, variables)
            double = variance.dtype == np.float64
            most = q.expectation.holds(double)
            if variance > most * (1 + 1e-4):  # rounding of a variance that is the limit
                raise InputError(
                    explain(
                        f"kernel: the inputs give the argument of {q.function} a variance of {float(variance):.2g}, expected at most {most:g}",
                        reason="this expectation has no closed form, and beyond that quadrature may be off by more than "
                        + ("1e-9 of its size" if double else "1e-5 of its size"),
                        mend="scale the inputs down, or the variances of weights; functions with a closed form, such as erf and ReLU, "
                        "have no such limit",
                    )
                )

    return check
