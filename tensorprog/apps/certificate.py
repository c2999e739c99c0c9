"""Is a kernel matrix positive definite? Answered with a proof in floating point.

If the Cholesky factorisation of A - c I runs to its end in floating point, the smallest eigenvalue of A is at least c minus
a bound on its rounding errors: Rump 2006 (Verification of positive definiteness, BIT 46), theorem 2.3. Errors of the
entries themselves move an eigenvalue by no more than the spectral norm of the matrix of errors (Weyl).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorprog.apps.grams import Grams, check_number, count

__all__ = ["Certificate", "certify"]

ENTRY_ERROR = 1e-12  # of compiled kernels in float64, relative to the largest entry (`tp.compile`'s tolerance)


@dataclass(frozen=True)
class Certificate:
    """What is proved of the smallest eigenvalue.

    smallest: its computed value. error: it lies within this of the true one, or above. entry_error: the part of it that
    comes from the entries. certified: is the true one above zero?
    """

    smallest: float
    error: float
    entry_error: float
    size: int

    @property
    def certified(self) -> bool:
        return bool(self.smallest > self.error)

    def __str__(self) -> str:
        found = f"smallest eigenvalue of the {self.size} x {self.size} matrix: {self.smallest:.4g}, error at most {self.error:.2g}"
        if self.certified:
            return f"positive definite; {found}"
        return f"not certified as positive definite; {found}"


def certify(
    kernel: Callable[..., Any], x: Any, *, get: str = "ntk", entry_error: float | None = None, **hypers: float
) -> Certificate:
    """A lower bound of the smallest eigenvalue of the kernel matrix of the inputs x (N, *example), in float64.

    entry_error: how far an entry may be from the true kernel, absolutely; None takes 1e-12 of the largest entry, or for
    a sampled kernel 5 of its standard errors (then the certificate holds as surely as they do).

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(2))
        >>> apps.certify(kernel, np.eye(2)).certified
        True
        >>> apps.certify(kernel, np.ones((2, 2))).certified
        False
    """
    n, grams = count(x, "x"), Grams(kernel, hypers)
    matrix = grams(get, x)
    if entry_error is None:
        entry_error = ENTRY_ERROR * float(np.abs(matrix).max(initial=0.0))
        if getattr(kernel, "sampled", False):
            noisy = Grams(lambda *a, **k: kernel.standard_error(*a, **k), hypers)(get, x)  # type: ignore[attr-defined]
            entry_error += 5 * float(noisy.max(initial=0.0))
    entries = check_number(entry_error, "entry_error") * len(matrix)
    smallest = float(np.linalg.eigvalsh(matrix)[0]) if n else float("inf")
    return Certificate(
        smallest, smallest - _lower_bound(matrix, smallest) + entries if n else 0.0, entries, len(matrix)
    )


def _lower_bound(matrix: np.ndarray, guess: float) -> float:
    """A number that the smallest eigenvalue of this very matrix is proved to exceed."""
    n, unit = len(matrix), np.finfo(np.float64).eps / 2
    gamma = (n + 1) * unit / (1 - (n + 1) * unit)
    scale = float(np.abs(np.diagonal(matrix)).max(initial=0.0))
    margin = max(gamma / (1 - gamma) * float(np.abs(np.diagonal(matrix)).sum()), np.finfo(np.float64).tiny)
    for k in range(64):  # a guess that is too high fails, and the next is lower
        shift = guess - margin * 2.0**k
        try:
            np.linalg.cholesky(matrix - shift * np.eye(n))
        except np.linalg.LinAlgError:
            continue
        return shift - margin - unit * (scale + abs(shift)) - gamma * n * abs(shift)
    return -float(np.abs(matrix).sum(1).max())
