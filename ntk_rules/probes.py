"""Up to which variances a rule holds: its own estimate of the error, at variances that fall and some correlations.

It is asked once, while a rule is derived, in double precision and by NumPy; what is found decides whether a tier answers, and which
inputs a kernel refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ntk_rules.errors import Declined
from ntk_rules.interpreted import by_numpy
from ntk_rules.method import NEAR
from ntk_rules.question import Question

__all__ = ["DEFAULT_TOLERANCE", "Probes", "admissible", "judged", "probed", "up_to"]

DEFAULT_TOLERANCE = 1e-12
# Falling. Of one Gaussian quadrature may be good at any variance; how far series reach, a finer list tells.
_VARIANCES = (1e8, 1e6, 1e4, 1e3, 384.0, 256.0, 192.0, 128.0, 96.0, 64.0, 48.0, 32.0, 24.0, 16.0, 8.0, 4.0, 2.0, 1.0)
_SMALL_VARIANCES = (0.3, 0.01)
_LARGE_VARIANCES = (1e16, 1e12)  # of one variable alone: depth drives them there


def up_to(variance: float) -> str:
    """The range of a bound in words."""
    return f"relative to the scale of the answer, for variances up to {variance:g}"


@dataclass(frozen=True)
class Probes:
    """(error, scale) at variances that fall, the first `large` of them 1 or more, and correlations, a row each."""

    variances: tuple[float, ...]
    large: int
    error: np.ndarray
    scale: np.ndarray


@functools.lru_cache(maxsize=8)
def probed(
    error_at: Callable[..., tuple[jax.Array, jax.Array]], needs: tuple, parameters: int, correlations: tuple[float, ...]
) -> Probes:  # fmt: skip
    """What `error_at` finds in double precision, of equal variances, by NumPy: it is run once."""
    large = (_LARGE_VARIANCES if len(needs) == 1 else ()) + _VARIANCES
    q = np.asarray(large + _SMALL_VARIANCES)
    rho = np.asarray(correlations)[:, None]

    def at(q: jax.Array, rho: jax.Array, values: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return error_at({e: q if e[0] == e[1] else rho * q for e in needs}, values)

    with jax.enable_x64(True):
        found = by_numpy(at)(q, rho, tuple(np.ones_like(q) for _ in range(parameters)))
    error, scale = (np.broadcast_to(x, (len(rho), q.size)) for x in found)
    return Probes(tuple(q.tolist()), len(large), error, scale)


def admissible(
    error_at: Callable[..., tuple[jax.Array, jax.Array]], needs: tuple, question: Question,
    correlations: tuple[float, ...] = (0.9,),
) -> tuple[float, dict[str, Any]]:  # fmt: skip
    """`judged` of what `error_at` finds."""
    return judged(probed(error_at, needs, question.parameters, correlations), question)


def judged(probes: Probes, question: Question, near: tuple[float, float] = NEAR) -> tuple[float, dict[str, Any]]:
    """(bound relative to the scale of the answer, how far it and errors of `near` hold, as keywords of a Method), or Declined."""
    wanted = question.tolerance or DEFAULT_TOLERANCE
    large, error, scale = probes.variances[: probes.large], probes.error, probes.scale
    every = np.arange(len(probes.variances))
    worst = np.argmax(np.where(np.isfinite(error), error, np.inf), axis=0)
    error, scale = error[worst, every], scale[worst, every]
    usable = np.isfinite(error) & np.isfinite(scale)
    if not usable[len(large) - 1 :].all():
        raise Declined("the function grows too fast: its square has no finite mean at variance 1")
    relative = np.where(usable & (scale > 0), error / np.where(usable & (scale > 0), scale, 1), 0.0)
    relative = np.where(usable, relative, np.inf)
    worst_so_far = np.maximum.accumulate(relative[::-1])[::-1]  # of this variance and all smaller ones

    def place(allowed: float) -> int | None:
        return next((k for k in range(len(large)) if worst_so_far[k] <= allowed), None)

    if (k := place(wanted)) is None:
        raise Declined(f"reaches {worst_so_far[len(large) - 1]:.1e} at variance 1, wanted {wanted:.1e}")
    holds = tuple(large[place(max(wanted, allowed)) or 0] for allowed in near)
    return float(worst_so_far[k]), {"reach": large[k], "near": holds}
