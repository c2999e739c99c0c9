"""What a tier answers with: a method, or the reason why it declines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules.terms import Term

Entry = tuple[int, int]
MOVED = 6.0  # units of rounding of a correlation: two roots, two products, and what counts as 1
NEAR = (1e-9, 1e-5)  # of the scale of the answer: what double and single precision may be off at most without an error
Compute = Callable[[dict[Entry, jax.Array], tuple[jax.Array, ...]], jax.Array]


@dataclass(frozen=True)
class Method:
    """How an expectation is computed. reach: the largest variance for which `bound` was shown; near: those for which errors of `NEAR`
    were."""

    tier: str
    needs: tuple[Entry, ...]
    compute: Compute
    steps: tuple[str, ...]
    formula: sp.Expr | None = None
    bound: float = 0.0
    bound_range: str = ""
    estimate: Compute | None = None
    pathwise: Compute | None = None  # differentiable in place of Price's theorem, where that has no rule
    once: Compute | None = None  # the value in fewer and longer operations, for a single use
    reach: float = math.inf
    near: tuple[float, float] = (math.inf, math.inf)
    terms: tuple[Term, ...] | None = None  # the normal form of what was asked, from which derivatives are taken

    def error(self, covariances: dict[Entry, jax.Array], parameters: tuple[jax.Array, ...]) -> jax.Array:
        """Estimated absolute error at these values."""
        if self.estimate is None:
            return jnp.zeros_like(self.compute(covariances, parameters))
        return self.estimate(covariances, parameters)


def reaches(methods: Sequence[Method]) -> dict[str, Any]:
    """How far what is made of `methods` reaches, as keywords of a `Method`."""
    return {
        "reach": min(m.reach for m in methods),
        "near": (min(m.near[0] for m in methods), min(m.near[1] for m in methods)),
    }


def by_correlations(compute: Compute, needs: tuple[Entry, ...]) -> Compute:
    """How much a value changes when its correlations move by their rounding: near 1 and -1, where they snap to that, by more than
    any quadrature is off.
    """

    def change(covariances: dict[Entry, jax.Array], parameters: tuple[jax.Array, ...]) -> jax.Array:
        value = jnp.asarray(compute(covariances, parameters))
        total = jnp.zeros_like(value)
        for entry in (e for e in needs if e[0] != e[1]):
            c = jnp.asarray(covariances[entry])
            step = MOVED * jnp.finfo(value.dtype).eps * c
            moved = [compute({**covariances, entry: c + side * step}, parameters) for side in (-1, 1)]
            total = total + jnp.maximum(*(jnp.abs(m - value) for m in moved))
        return total

    return change
