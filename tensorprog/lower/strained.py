"""Are variances so large that quadrature no longer follows a function? Then the kernel is refused rather than wrong.

A function without closed form is integrated by rules of a fixed size. Up to which variance their error stays below `ntk_rules.method.NEAR`
is found when the rule is derived; inputs with larger ones are refused, whatever correlation their pairs have. Where nothing can be raised,
in code that is traced or exported, the kernel is NaN.

Where a function has parameters, hyperparameters or values of the input, it is their values as well that decide, of closed forms too: terms of
E[exp(-c |z|)] cancel where c is large. Then the error is estimated anew for the values that there are, where calls are run: the estimate would
be most of the code of what is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules.method import NEAR
from tensorprog.errors import InputError, explain
from tensorprog.kernel.graph import Expect, Quantity
from tensorprog.lower.run import Slots

__all__ = ["Strained", "parameters_of", "variances_of"]


def variances_of(found: Iterable[Quantity]) -> list[tuple[Expect, tuple[Quantity, ...]]]:
    """The expectations whose variances are to be looked at, and what holds these, a quantity of one input each."""
    out = []
    for q in found:
        if isinstance(q, Expect) and (np.isfinite(q.expectation.holds(double=False)) or q.expectation.by_parameters):
            places = zip(q.expectation.needs, q.operands, strict=False)
            own = tuple(
                dict.fromkeys(o.quantity for (i, j), o in places if i == j and (o.side is not None or not q.cross))
            )
            out += [(q, own)] if own else []
    return out


def parameters_of(q: Expect) -> tuple[Quantity, ...]:
    """What holds the values of an expectation's parameters."""
    return tuple(o.quantity for o in q.operands[q.n_covariances :])


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
        # with the same expectation of other layers, each reading its own quantities
        self._by_parameters = [q for q, _ in looked_at if q.expectation.by_parameters]

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

    def _asked(self, own: bool) -> list[Expect]:
        return [q for q in self._by_parameters if not (own and q.cross)]

    def _rows(self, q: Expect, states: Any) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
        """Variances and parameters of some inputs: those with the least and the largest of each."""
        read = lambda quantity: np.asarray(self._slots.of_all(states, quantity), float)
        variances, parameters = _variances(q), parameters_of(q)
        arrays = [a.reshape(len(a), -1) for a in map(read, (*variances.values(), *parameters))]
        width = max(a.shape[1] for a in arrays)
        wide = [
            (np.broadcast_to if a.shape[1] in (1, width) else np.resize)(a, (len(a), width)).ravel() for a in arrays
        ]
        chosen = [f(a) for a in wide for f in (np.argmin, np.argmax)]
        rows = [a[chosen] for a in wide]
        return dict(zip(variances, rows, strict=False)), rows[len(variances) :]

    def _enough(self, states: Any, own: bool, loose: bool) -> bool:
        """Is the precision of the states enough for what has parameters? InputError where double precision is not."""
        enough = True
        for q in self._asked(own):
            variances, parameters = self._rows(q, states)
            place = next(iter(_variances(q).values()))
            single = np.asarray(self._slots.of_all(states, place)).dtype == np.float32
            error = q.expectation.relative_error(variances, parameters)
            if not error <= NEAR[single or loose]:
                values = ", ".join(f"{s} = {np.max(v):.3g}" for s, v in zip(_symbols(q), parameters, strict=False))
                largest = max(map(np.max, variances.values()))
                raise InputError(
                    explain(
                        f"kernel: the expectation of {q.function} may be off by {error:.0e} of its size, expected at most "
                        f"{NEAR[single or loose]:g}, for {values} and variances up to {largest:.3g}",
                        reason="its terms nearly cancel, or its quadrature does not follow it, at these values",
                        mend="scale the inputs or the variances of weights, or write a fixed number in the place of the hyperparameter: "
                        "the rule is then chosen for that number",
                    )
                )
            enough &= not single or q.expectation.relative_error(variances, parameters, single=True) <= NEAR[1]
        return enough

    def __call__(self, states: Any, own: bool = False, loose: bool = False) -> bool:
        """InputError where a variance of the states of many inputs is. loose: to what float32 asks for, in float64 too. Is the precision of the
        states enough?"""
        for q, variance, most, more in self._judged(self._largest_of_all(states), own, loose):
            if more and not q.expectation.by_parameters:
                raise InputError(
                    explain(
                        f"kernel: the inputs give the argument of {q.function} a variance of {float(variance):.2g}, expected at most {most:g}",
                        reason="this expectation has no closed form, and beyond that quadrature may be off by more than "
                        + ("1e-9 of its size" if variance.dtype == np.float64 and not loose else "1e-5 of its size"),
                        mend="scale the inputs down, or the variances of weights; functions with a closed form, such as erf and ReLU, "
                        "have no such limit",
                    )
                )
        return self._enough(states, own, loose)


def _variances(q: Expect) -> dict[int, Quantity]:
    """What holds the variance of each Gaussian."""
    places = zip(q.expectation.needs, q.operands, strict=False)
    return {i: o.quantity for (i, j), o in places if i == j}


def _symbols(q: Expect) -> list[str]:
    return sorted(
        (s.name for s in q.function.free_symbols if s.name.startswith("b")), key=lambda name: (len(name), name)
    )
