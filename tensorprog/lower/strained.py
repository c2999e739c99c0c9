"""Are variances so large that quadrature no longer follows a function? Then the kernel is refused rather than wrong.

A function without closed form is integrated by rules of a fixed size. Up to which variance their error stays below `ntk_rules.method.NEAR`
is found when the rule is derived; inputs with larger ones are refused, whatever correlation their pairs have. Where nothing can be raised,
in code that is traced or exported, the kernel is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError, explain
from tensorprog.kernel.graph import Expect, Quantity
from tensorprog.lower.run import Slots

__all__ = ["Strained", "variances_of"]


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


class Strained:
    """A check of the variances that states keep: loud where calls are run, and NaN where they are traced.

    own: are inputs met with themselves alone? Then expectations of one Gaussian variable are asked, which follow far larger variances than
    those of pairs.
    """

    def __init__(self, looked_at: Sequence[tuple[Expect, tuple[Quantity, ...]]], slots: Slots):
        of: dict[Any, tuple[Expect, dict[Quantity, None]]] = {}
        for q, own in looked_at:
            of.setdefault(q.expectation, (q, {}))[1].update(dict.fromkeys(own))
        self._read, self._slots = list(of.values()), slots

    def _largest(self, state: Any) -> list[jax.Array]:
        return [jnp.max(jnp.stack([jnp.max(self._slots.read(state, v)) for v in own])) for _, own in self._read]

    def _largest_of_all(self, states: Any) -> list[Any]:
        """Of the states of many inputs, by NumPy."""
        return [np.max([np.max(np.asarray(self._slots.of_all(states, v))) for v in own]) for _, own in self._read]

    def _judged(
        self, largest: Sequence[Any], own: bool, loose: bool = False
    ) -> Iterator[tuple[Expect, Any, float, Any]]:
        """(expectation, variance, the most it holds for, is it more?)"""
        for (q, _), variance in zip(self._read, largest, strict=True):
            if not (own and q.cross):
                most = q.expectation.holds(variance.dtype == np.float64 and not loose)
                yield q, variance, most, variance > most * (1 + 1e-4)  # rounding of a variance that is the limit

    def beyond(self, state: Any, own: bool = False) -> jax.Array:
        """Is a variance of one input's state beyond what is followed?"""
        return jnp.any(jnp.stack([False, *(more for *_, more in self._judged(self._largest(state), own))]))

    def __call__(self, states: Any, own: bool = False, loose: bool = False) -> None:
        """InputError where a variance of the states of many inputs is. loose: to what float32 asks for, in float64 too."""
        for q, variance, most, more in self._judged(self._largest_of_all(states), own, loose):
            if more:
                raise InputError(
                    explain(
                        f"kernel: the inputs give the argument of {q.function} a variance of {float(variance):.2g}, expected at most {most:g}",
                        reason="this expectation has no closed form, and beyond that quadrature may be off by more than "
                        + ("1e-9 of its size" if variance.dtype == np.float64 and not loose else "1e-5 of its size"),
                        mend="scale the inputs down, or the variances of weights; functions with a closed form, such as erf and ReLU, "
                        "have no such limit",
                    )
                )
