"""The nodes of integrals over a Laplace variable: int_0^inf s^(k/2-1) e^(-s epsilon) f(s) ds / Gamma(k/2).

f is a product of factors (1 + 2 lambda s)^(-1/2), the lambda of any spectrum. In x, with 2 s (trace + epsilon) = exp(x - e^(-x)),
their singularities all lie pi off the real line, whatever the lambda, the integrand falls off doubly exponentially on the left,
and on the right where e^(-s epsilon) does; so the trapezoidal rule converges geometrically for every spectrum alike, singular
ones included.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["ERROR", "half_line", "nodes_for"]

LEFT = 4.3  # s^(1/2) is 1e-16 there
RIGHT = 60.0  # without an epsilon: s^(-1/2) is 1e-13 there
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
