"""The nodes of integrals over a Laplace variable: int_0^inf s^(k/2-1) e^(-s epsilon) f(s) ds / Gamma(k/2).

f is a product of factors (1 + 2 lambda s)^(-1/2), the lambda of any spectrum. In x, with 2 s (trace + epsilon) = exp(x - e^(-x)),
their singularities all lie pi off the real line, whatever the lambda, the integrand falls off doubly exponentially on the left,
and on the right where e^(-s epsilon) does; so the trapezoidal rule converges geometrically for every spectrum alike, singular
ones included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["ERROR", "End", "Seen", "half_line", "last_of", "nodes_for"]

LEFT = 4.3  # s^(1/2) is 1e-16 there
RIGHT = 60.0  # without an epsilon: s^(-1/2) is 1e-13 there
# The end of the line without an epsilon. Beyond s = 1e14 the tilted covariances, of 1/s, are less than the rounding of what they are
# the differences of; in float32 beyond 1e6.
LAST = {"float64": 33.0, "float32": 14.0}
EARLY, LATE = 0.45, 0.6  # two places before that, as parts of it
SAME = 0.1  # how near a power of s an integrand has to be between them
ERROR = 1e-12  # relative, for epsilon = 0 or from 1e-7 of the trace on (tests/kernel/test_half_line.py)


def nodes_for(epsilons: list[float]) -> int:
    """How many nodes give integrals of this kind the relative error `ERROR`."""
    return 80 if all(epsilons) else 200


def half_line(nodes: int, trace: Any, epsilon: float, last: float = RIGHT) -> tuple[Any, Any]:
    """Nodes s, and weights w with int s^(k/2-1) f(s) ds = sum_i w_i s_i^(k/2) f(s_i). trace: of the spectrum, may be traced. last:
    the largest x, without an epsilon."""
    whole = trace + epsilon
    dtype = jnp.result_type(trace)
    right = jnp.log(70 * whole / epsilon) if epsilon else jnp.asarray(last, dtype)
    step = (right + LEFT) / (nodes - 1)
    x = step * np.arange(nodes) - LEFT
    return jnp.exp(x - jnp.exp(-x)) / (2 * whole), step * (1 + jnp.exp(-x))


def last_of(dtype: Any) -> float:
    """The largest x of a line without an epsilon."""
    return LAST.get(jnp.dtype(dtype).name, RIGHT)


# ------------------------------------------------------------------------------------------ the end of the line


Seen = tuple[jax.Array, ...]  # sums at the early, the late and the last node, and after the late one


@dataclass(frozen=True)
class End:
    """The end of a line without an epsilon, where the integrand falls like a power of s: s^(-rank/2), in the tangent kernel like
    s^(1-rank/2), the rank being that of the form. In x that is exp(-b x), a geometric series. Where b = 1/2, what is left out
    counts, and is summed as such from a place on that is free of rounding; where the integrand does not fall, the expectation
    is infinite: no number.

    early, late, last: nodes on the axis.
    """

    axis: int
    early: int
    late: int
    last: int
    step: float

    @classmethod
    def of(cls, axis: int, nodes: int, dtype: Any) -> End:
        """axis: the number of the line among those of an integral. nodes: how many it has."""
        last = last_of(dtype)
        step = (last + LEFT) / (nodes - 1)
        early, late = (round((part * last + LEFT) / step) for part in (EARLY, LATE))
        return cls(axis, early, late, nodes - 1, step)

    def seeing(self, seen: Seen, index: tuple[jax.Array, ...], made: jax.Array) -> Seen:
        """The sums at the three nodes, and after the second, with one more addend."""
        at = index[self.axis]
        here = (at == self.early, at == self.late, at == self.last, (at > self.late) & (at <= self.last))
        return tuple(s + jnp.where(yes, made, 0) for s, yes in zip(seen, here, strict=True))

    def beyond(self, seen: Seen, size: jax.Array) -> jax.Array:
        """What the sum over the nodes lacks. size: of the largest entry."""
        early, late, last, rest = seen
        ratio = math.exp(-self.step / 2)
        between = ratio ** (self.late - self.early)
        near = jnp.abs(late - between * early) <= SAME * jnp.abs(between * early)
        # c exp(-x/2) + d exp(-3x/2), the powers of s of a product of factors (1 + 2 lambda s)^(-1/2)
        second = (between * early - late) * between**2 / (1 - between**2)
        lacking = (late - second) * ratio / (1 - ratio) + second * ratio**3 / (1 - ratio**3) - rest
        stays = (jnp.abs(last) > 0.3 * jnp.abs(late)) & (jnp.abs(last) > 1e-6 * size)
        return jnp.where(stays, jnp.nan, jnp.where(near, lacking, 0))
