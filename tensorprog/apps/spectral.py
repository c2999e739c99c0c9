"""How far each kernel principal component is learned: the scalar dynamics behind training on the square loss.

Along an eigenvector of the NTK with eigenvalue l the error obeys one scalar equation, so a training method is a pair of
functions of l: what is left of the error, r, and g = (1 - r) / l, which says how much the weights have moved. Gradient
flow: Lee et al. 2019, equations 10 and 11. Momentum is the heavy ball v <- m v + gradient, w <- w - rate v (Polyak 1964).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorprog.errors import InputError, explain

__all__ = ["Filter", "Spectrum", "descent", "flow", "spectrum"]


class Filter(NamedTuple):
    """left (T, n): the share of the error that remains. moved (T, n): (1 - left) / eigenvalue."""

    left: np.ndarray
    moved: np.ndarray


class Spectrum(NamedTuple):
    """Eigenvalues in ascending order, exactly zero where they cannot be told from it, and eigenvectors as columns."""

    values: np.ndarray
    vectors: np.ndarray


def spectrum(matrix: np.ndarray) -> Spectrum:
    """The spectrum of a positive semidefinite matrix; eigenvalues within its rounding errors are zero.

    Raises InputError where one is clearly negative.
    """
    values, vectors = np.linalg.eigh(matrix)
    if not len(values):
        return Spectrum(values, vectors)
    rounding = len(matrix) * np.finfo(matrix.dtype).eps * np.abs(values).max()
    if values[0] < -1e3 * rounding:
        raise InputError(
            explain(
                f"kernel: the matrix of the training inputs has the eigenvalue {values[0]:.3g}, expected none below zero",
                reason="a matrix with negative eigenvalues is no kernel: training would diverge along its eigenvector",
                mend="if an expectation is sampled, give tp.compile a smaller tolerance; otherwise please report the network",
            )
        )
    return Spectrum(np.where(values > rounding, values, 0.0), vectors)


def flow(values: np.ndarray, times: np.ndarray) -> Filter:
    """Gradient flow for these times (T,), which may be infinite. Components of eigenvalue zero stay as they are."""
    learned = values > 0
    with np.errstate(invalid="ignore", over="ignore"):
        exponents = np.where(learned, times[:, None] * values, 0.0)
    moved = -np.expm1(-exponents) / np.where(learned, values, 1.0)
    return Filter(np.exp(-exponents), moved)


def descent(values: np.ndarray, steps: np.ndarray, rate: float, momentum: float) -> Filter:
    """Gradient descent after these numbers of steps (T,), which may be infinite, from rest."""
    rows = [_after(values, s, rate, momentum) for s in steps]
    moved = np.stack(rows) if rows else np.zeros((0, len(values)))
    with np.errstate(invalid="ignore"):
        left = 1.0 - np.where(values > 0, values * moved, 0.0)
    if momentum == 0 and len(rows):  # without cancellation
        left = np.stack([_power(1.0 - rate * values, s, values > 0) for s in steps])
    return Filter(left, moved)


def _power(base: np.ndarray, steps: float, learned: np.ndarray) -> np.ndarray:
    if np.isinf(steps):
        return np.where(learned, 0.0, 1.0)
    return base**steps


def _after(values: np.ndarray, steps: float, rate: float, momentum: float) -> np.ndarray:
    """(1 - left) / eigenvalue after some steps."""
    learned = values > 0
    safe = np.where(learned, values, 1.0)
    if np.isinf(steps):
        return np.where(learned, 1 / safe, 0.0)
    if momentum == 0:
        x = rate * safe
        with np.errstate(divide="ignore", invalid="ignore"):
            slow = -np.expm1(steps * np.log1p(-np.minimum(x, 0.5))) / safe
            found = np.where(x < 0.5, slow, (1 - (1 - x) ** steps) / safe)
        return np.where(learned, found, 0.0)
    # (moved, velocity, 1) after one step is linear in itself: velocity' = m velocity + rate (1 - l moved), moved' = moved + velocity'.
    step = np.zeros((len(values), 3, 3))
    step[:, 1] = np.stack([-rate * safe, np.full_like(safe, momentum), np.full_like(safe, rate)], 1)
    step[:, 0] = step[:, 1]
    step[:, 0, 0] += 1
    step[:, 2, 2] = 1
    return np.where(learned, np.linalg.matrix_power(step, int(steps))[:, 0, 2], 0.0)
