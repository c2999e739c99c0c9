"""Are variances so large that quadrature no longer follows a function? Then the kernel is refused rather than wrong.

A smooth function without closed form (tanh, swish) is expanded in Hermite polynomials of the standardised Gaussian. At large variances
it becomes a step to them, and the series, of a fixed length, no longer reaches it: worst at correlation 1, on the diagonal. The error
that the rule states of itself is asked there, once variances are far beyond those for which its bound was shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules import Expectation
from tensorprog.errors import InputError, explain
from tensorprog.kernel.graph import Expect, Quantity
from tensorprog.lower.run import Slots

__all__ = ["strained"]

ALLOWED = 1e-3  # of the size of the expectation
SURE = 4.0  # times the variances for which a bound of 1e-12 was shown: errors are still below 1e-3, in single precision too
_CORRELATIONS = (1.0, 0.5, -0.9)


def strained(pairs: Iterable[Quantity], slots: Slots) -> Callable[[Any], None] | None:
    """A check of the states of many inputs, which raises InputError; None where every expectation is good everywhere.

    pairs: what is computed of a pair.
    """
    found: dict[Expectation, tuple[Expect, dict[Quantity, None]]] = {}
    for q in pairs:
        if isinstance(q, Expect) and np.isfinite(q.expectation.reach):
            places = zip(q.expectation.needs, q.operands, strict=False)
            own = {o.quantity: None for (i, j), o in places if i == j and o.side is not None}
            found.setdefault(q.expectation, (q, {}))[1].update(own)
    read = [(law, q, own) for law, (q, own) in found.items() if own]
    if not read:
        return None

    def largest(state: Any) -> list[jax.Array]:
        return [jnp.max(jnp.stack([jnp.max(slots.read(state, v)) for v in own])) for *_, own in read]

    largest_of_all = jax.jit(lambda states: [jnp.max(v) for v in jax.vmap(largest)(states)])

    def check(states: Any) -> None:
        for (law, q, _), variance in zip(read, largest_of_all(states), strict=True):
            if variance <= SURE * law.reach:
                continue
            if (off := _error(law, variance, len(q.operands) - q.n_covariances)) > ALLOWED:
                raise InputError(
                    explain(
                        f"kernel: the inputs give the argument of {q.function} a variance of {float(variance):.2g}, expected at most "
                        f"{law.reach:g} or not much more",
                        reason=f"this expectation has no closed form, and quadrature is off by {off:.1g} of it there, on the diagonal",
                        mend="scale the inputs down, or the variances of weights; float64 reaches farther than float32; functions "
                        "with a closed form, such as erf and ReLU, have no such limit",
                    )
                )

    return check


def _error(law: Expectation, variance: jax.Array, parameters: int) -> float:
    """The stated error at correlation 1, relative to the size of the expectation; 0 where it vanishes by symmetry."""
    given = [jnp.ones_like(variance)] * parameters
    covariances = lambda rho: [variance * (1.0 if i == j else rho) for i, j in law.needs]
    size = max(abs(float(law.value(covariances(rho), given))) for rho in _CORRELATIONS)
    return float(law.error(covariances(1.0), given)) / size if size > 0 else 0.0
