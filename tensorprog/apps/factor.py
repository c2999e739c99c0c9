"""One Cholesky factorisation of a regularised gram matrix, and what it says when there is none."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from tensorprog.apps.grams import precision
from tensorprog.errors import InputError, explain

__all__ = ["Factor", "regularised"]


def regularised(gram: np.ndarray, noise: float, diag_reg: float) -> np.ndarray:
    """gram + (noise + diag_reg * mean of the diagonal) * identity. Raises InputError where that is more than its dtype holds."""
    added = noise + diag_reg * float(np.mean(np.diagonal(gram))) if gram.size else noise
    with np.errstate(over="ignore", invalid="ignore"):
        made = gram + np.diag(np.full(len(gram), added).astype(gram.dtype))
    if not (np.abs(made) < np.finfo(made.dtype).max / 4).all():  # sums of a few entries are taken of it
        raise InputError(
            f"kernel: {added:.3g} is added to the diagonal (noise is {noise!r}, diag_reg or alpha {diag_reg!r}), more than {gram.dtype} holds\n"
            "  to mend: give less, or take dtype=np.float64"
        )
    return made


class Factor:
    """The Cholesky factor of a positive definite matrix, made once, used for many right-hand sides.

    Raises InputError where the matrix is singular at working precision; the message names equal inputs if there are any.
    """

    def __init__(self, matrix: np.ndarray):
        self.dtype = matrix.dtype
        with precision(self.dtype):
            self.lower = np.asarray(jnp.linalg.cholesky(matrix))
        self._check(matrix)

    def _check(self, matrix: np.ndarray) -> None:
        if not len(matrix):
            return
        pivots = np.diagonal(self.lower)
        # Rounding alone makes pivots of n eps times the largest entry (Higham 2002, theorem 10.3).
        floor = len(matrix) * np.finfo(self.dtype).eps * np.abs(np.diagonal(matrix)).max()
        if np.isfinite(self.lower).all() and pivots.min() ** 2 > floor:
            return
        smallest = float(np.linalg.eigvalsh(matrix.astype(np.float64))[0])
        raise InputError(
            explain(
                f"kernel: the matrix of the {len(matrix)} training values is singular: its smallest eigenvalue is {smallest:.2g}, "
                f"its largest entry {np.abs(matrix).max():.3g}",
                reason=_duplicates(matrix) or f"in {self.dtype} it cannot be told from a singular one",
                mend="give noise > 0 (the variance of the noise in y), or diag_reg=1e-6 (a multiple of the mean diagonal), "
                "or leave out repeated inputs",
            )
        )

    def solve(self, right: Any) -> np.ndarray:
        """matrix^-1 right."""
        with precision(self.dtype):
            return np.asarray(cho_solve((self.lower, True), np.asarray(right, self.dtype)))

    def half(self, right: Any) -> np.ndarray:
        """L^-1 right, with matrix = L L'."""
        with precision(self.dtype):
            return np.asarray(solve_triangular(self.lower, np.asarray(right, self.dtype), lower=True))

    @cached_property
    def log_determinant(self) -> float:
        """log det of the matrix."""
        return 2 * float(np.sum(np.log(np.diagonal(self.lower))))


def _duplicates(matrix: np.ndarray) -> str:
    """Two rows that are one input, in words."""
    diagonal = np.diagonal(matrix)
    scale = np.abs(diagonal).max() or 1.0
    apart = np.abs(diagonal[:, None] + diagonal[None, :] - 2 * matrix)
    close = np.argwhere(np.triu(apart <= 64 * np.finfo(matrix.dtype).eps * scale, 1))
    if not len(close):
        return ""
    i, j = (int(k) for k in close[0])
    return f"the kernel cannot tell training values {i} and {j} apart" + (
        f" ({len(close)} such pairs)" if len(close) > 1 else ""
    )
