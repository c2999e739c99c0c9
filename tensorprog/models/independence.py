"""Whether the entries of parameters start as a tensor program's do: all alike, and independent of each other.

A law read off moments says nothing of how entries hang together. Some initialisers fill a part of an array only (delta-orthogonal kernels),
repeat or mirror entries (subpixel kernels, looks-linear and antisymmetric starts), or give two parameters the same random numbers (a
key that is used twice). Each leaves its mark on second moments, which are compared with those of independent draws:

  sums of squares over parts of an axis        equal, up to the spread of chi^2 with 2 N / (kurtosis - 1) degrees of freedom
  squares of sums along an axis of size m      the sum of squares in the mean, chi^2 with N / m degrees
  sums of w_ij w_ji, and of a_i b_i            zero, up to 1/sqrt(N) of the squares

Wilson and Hilferty's cube root (1931) makes a chi^2 nearly normal. A start of independent entries is refused with a probability
below 1e-6 for each of the some hundred comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from tensorprog.errors import NetworkError, explain

__all__ = ["check_alike", "check_independent"]

SIGMAS = 7.0
PARTS = 64  # an axis is compared in, at most
PREFIX = 256  # entries of two parameters that are compared
FEWEST = 5  # of which exactly proportional entries are no chance
PROPORTIONAL = 1 - 1e-6


def check_alike(name: str, draws: Sequence[np.ndarray]) -> None:
    """Refuse a parameter whose entries, by these draws of it, hang together or differ in size."""
    reason = _hangs_together(draws) or _differs(draws)
    if reason is not None:
        raise NetworkError(
            explain(
                f"the entries of parameter {name!r} do not start as independent draws of one law",
                reason=f"{reason}; the limit is that of independent entries, all of one variance, and would be another",
                mend=f"let the network itself say how entries hang together, as sums or copies of parameters; or, to take independent "
                f"entries all the same, init={{{name!r}: tp.Gaussian(std=...)}}",
            )
        )


def check_independent(draws: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Refuse two parameters that start from the same random numbers. draws: the parameters of the model, in each of its draws."""
    heads = {name: np.stack([draw[name].ravel()[:PREFIX] for draw in draws]) for name in draws[0]}
    for (a, x), (b, y) in combinations(heads.items(), 2):
        count = min(x.shape[1], y.shape[1])
        u, v = x[:, :count].ravel(), y[:, :count].ravel()
        scale = math.sqrt(float(u @ u) * float(v @ v))
        together = abs(float(u @ v)) / scale if scale else 0.0
        if together * math.sqrt(u.size) > SIGMAS or (together > PROPORTIONAL and u.size >= FEWEST):
            raise NetworkError(
                explain(
                    f"the parameters {a!r} and {b!r} start from the same random numbers (correlation {together:.3g})",
                    reason="the limit is that of independent parameters, and would be another; a key that is used for two layers does this",
                    mend="give every layer a key of its own; or, where two layers are meant to be one, use one layer twice; to take them as "
                    f"independent all the same, init={{{b!r}: tp.Gaussian(std=...)}}",
                )
            )


def _axes(draws: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    return ((axis, size) for axis, size in enumerate(draws[0].shape) if size > 1)


def _hangs_together(draws: Sequence[np.ndarray]) -> str | None:
    total = sum(float(np.sum(x * x)) for x in draws)
    entries = sum(x.size for x in draws)
    for axis, size in _axes(draws):
        ratio = sum(float(np.sum(x.sum(axis) ** 2)) for x in draws) / total
        if abs(_normal(ratio, entries / size)) > SIGMAS:
            return f"along axis {axis} they add up to {math.sqrt(ratio):.3g} times what independent ones do"
    shape = draws[0].shape
    if len(shape) >= 2 and shape[-1] == shape[-2] > 1:
        mirrored = sum(float(np.sum(x * x.swapaxes(-1, -2))) for x in draws) / total
        on_diagonal = sum(float(np.sum(np.diagonal(x, axis1=-2, axis2=-1) ** 2)) for x in draws) / total
        if abs(mirrored - on_diagonal) * math.sqrt(entries / 2) > SIGMAS:
            return f"entries w_ij and w_ji have the correlation {mirrored - on_diagonal:.3g}"
    return None


def _differs(draws: Sequence[np.ndarray]) -> str | None:
    entries = sum(x.size for x in draws)
    mean = sum(float(np.sum(x * x)) for x in draws) / entries
    kurtosis = sum(float(np.sum(x**4)) for x in draws) / entries / mean**2
    kurtosis = max(kurtosis, 1 + 1e-3)  # of entries that are all of one size
    for axis, size in _axes(draws):
        starts = np.unique(np.linspace(0, size, min(size, PARTS), endpoint=False).astype(int))
        squares = sum(np.square(np.moveaxis(x, axis, 0)).reshape(size, -1).sum(1) for x in draws)
        counts = np.diff([*starts, size]) * (entries // size)
        ratios = np.add.reduceat(squares, starts) / counts / mean
        spread = [_normal(ratio, 2 * n / (kurtosis - 1)) for ratio, n in zip(ratios, counts, strict=True)]
        if max(map(abs, spread)) > SIGMAS:
            return f"along axis {axis} their variance goes from {min(ratios):.3g} to {max(ratios):.3g} times its mean"
    return None


def _normal(ratio: float, degrees: float) -> float:
    """A chi^2 over its degrees of freedom as a nearly standard normal number."""
    part = 2 / (9 * degrees)
    return (ratio ** (1 / 3) - (1 - part)) / math.sqrt(part)
