"""How a parameter starts, read off samples of its own initialiser.

A module does not say from which law its parameters come, so they are drawn at several widths n, and the law is what
the draws show: a constant, or independent centred entries of variance c n^p. The power p is the slope of the sampled
variances, the shape of the law follows from the fourth moment, and c is replaced by a simple fraction where it is one
within the sampling error and coincidence is unlikely. A bounded law gives its variance far better by its largest
entry than by its second moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np

from tensorprog.errors import NetworkError, explain

__all__ = ["Law", "Moments", "read_law"]

# Fourth moment over squared variance, of the laws that initialisers use; truncated at two standard deviations.
KURTOSIS = {"Gaussian": 3.0, "truncated normal": 2.365537, "uniform": 1.8, "Rademacher": 1.0}
# variance / (largest entry)^2, and how many times 1/entries the relative error of the variance so found is.
BOUNDED = {"uniform": (1 / 3, 2.0), "truncated normal": (0.7737413 / 4, 9.0), "Rademacher": (1.0, 0.0)}
FEW_LARGE = 20.0  # a kurtosis above which entries are few and large
SIGMAS = 4.5
COINCIDENCE = 0.05  # a fraction is believed where a random number would be this rarely so close to one so simple
ROUNDING = 2e-6  # of statistics of float32 draws


@dataclass(frozen=True)
class Moments:
    """What the draws of one parameter at one width were: number, mean, mean square, fourth moment, extremes.

    per_draw: mean and mean square of each draw.
    """

    width: int
    entries: int
    mean: float
    square: float
    fourth: float
    low: float
    high: float
    per_draw: np.ndarray


@dataclass(frozen=True)
class Law:
    """The law of the entries of one parameter: `kind`, and variance `scale` * n^`power` (or the `value` they all have).

    error: the relative standard error of a scale that was sampled, 0 where it is a fraction. given: written by the user.
    """

    kind: str
    scale: Fraction | float = 0.0
    power: Fraction = Fraction(0)
    value: float = 0.0
    error: float = 0.0
    given: bool = False

    @property
    def constant(self) -> bool:
        return self.kind == "constant"

    @property
    def gaussian(self) -> bool:
        """Do its entries come from a Gaussian, or from no law at all?"""
        return self.kind in ("Gaussian", "constant")

    def std(self, width: int) -> float:
        return math.sqrt(float(self.scale)) * float(width) ** float(self.power / 2)

    def variance(self) -> str:
        """c n^p to read."""
        return power_of_width(self.scale, self.power) + (f" ± {100 * self.error:.1g}%" if self.error else "")


def power_of_width(scale: Fraction | float, power: Fraction) -> str:
    """scale * n^power to read: 1/9 and -1 are "1/(9 n)"."""
    if not scale:
        return "0"
    if not isinstance(scale, Fraction):
        top, bottom = f"{scale:.4g}", ""
    else:
        top, bottom = str(scale.numerator), "" if scale.denominator == 1 else str(scale.denominator)
    if power:
        size = abs(power)
        n = "n" if size == 1 else f"n^{size}" if size.denominator == 1 else f"n^({size})"
        if power > 0:
            top = n if top == "1" else f"{top} {n}"
        else:
            bottom = f"({bottom} {n})" if bottom else n
    return f"{top}/{bottom}" if bottom else top


def read_law(name: str, samples: Sequence[Moments], sizes: Sequence[int]) -> Law:
    """The law of the parameter `name` from its draws at growing widths. sizes: its axes that do not grow, those of size one too.

    Raises NetworkError where the draws are those of no law that a tensor program starts from.
    """
    if all(s.low == s.high for s in samples):
        if len({s.low for s in samples}) > 1:
            raise _unreadable(
                name,
                f"it is constant, with a value that depends on the width: {', '.join(f'{s.low:.4g}' for s in samples)}",
            )
        return Law("constant", value=samples[0].low)
    _check_random(name, samples)
    power = _power(name, samples)
    unit = [float(s.width) ** -float(power) for s in samples]
    kurtosis = float(np.average([s.fourth / s.square**2 for s in samples], weights=[s.entries for s in samples]))
    entries = sum(s.entries for s in samples)
    kind = _kind(kurtosis, entries)
    widths = np.array([s.width for s in samples], float)
    squares = [s.per_draw[:, 1] * u for s, u in zip(samples, unit, strict=True)]
    every = np.concatenate(squares)
    if (
        kind != "Rademacher"
        and len(every) > 1
        and entries > 10 * len(every)
        and np.ptp(every) <= 20 * ROUNDING * every.mean()
    ):
        # normalised: orthogonal, unless its entries are no more like a Gaussian than those of few coordinates on a sphere
        last = samples[-1]
        near = last.fourth / last.square**2 > 3 * last.width / (last.width + 8) - 0.03 - SIGMAS * math.sqrt(
            24 / last.entries
        )
        return _fitted(
            "orthogonal" if near else "unnamed law",
            [s.mean() for s in squares],
            [0.0] * len(samples),
            widths,
            power,
            sizes,
        )
    means = [s.square * u for s, u in zip(samples, unit, strict=True)]
    if kind in BOUNDED:
        factor, spread = BOUNDED[kind]
        tops = [factor * max(-s.low, s.high) ** 2 * u for s, u in zip(samples, unit, strict=True)]
        errors = [spread / s.entries for s in samples]
        scales = [top * (1 + error / 2) for top, error in zip(tops, errors, strict=True)]
        if all(
            abs(mean / scale - 1) <= SIGMAS * math.sqrt(max(kurtosis - 1, 0.0) / s.entries) + 2 * error + 2 * ROUNDING
            for mean, scale, error, s in zip(means, scales, errors, samples, strict=True)
        ):
            return _fitted(kind, scales, errors, widths, power, sizes, bounded=True)
        kind = "unnamed law"
    errors = [math.sqrt(max(kurtosis - 1, 0.1) / s.entries) for s in samples]
    return _fitted(kind, means, errors, widths, power, sizes)


def _unreadable(name: str, reason: str) -> NetworkError:
    return NetworkError(
        explain(
            f"the initial law of parameter {name!r} cannot be read off the module",
            reason=reason,
            mend=f"say how it starts: init={{{name!r}: tp.Gaussian(std=...)}} or tp.Constant(value=...), or a function of the width "
            "that gives one of them",
        )
    )


def _check_random(name: str, samples: Sequence[Moments]) -> None:
    for s in samples:
        draws = s.per_draw
        if len(draws) > 1 and np.all(draws[:, 0] == draws[0, 0]) and np.all(draws[:, 1] == draws[0, 1]):
            raise _unreadable(
                name, "every draw has the same entries, which differ from each other: a table, not a random start"
            )
        if abs(s.mean) > SIGMAS * math.sqrt(s.square / s.entries) + ROUNDING * max(abs(s.low), abs(s.high)):
            raise _unreadable(name, f"its entries are not centred: at width {s.width} their mean is {s.mean:.4g}, the standard "
                              f"deviation {math.sqrt(max(s.square - s.mean**2, 0.0)):.4g}")  # fmt: skip
    a, b = samples[0], samples[-1]
    few, many = a.fourth / a.square**2, b.fourth / b.square**2
    if many > FEW_LARGE and many / few > 0.6 * b.width / a.width > 1:
        raise _unreadable(
            name,
            f"few of its entries are large, and no more of them as the width grows (its fourth moment over the squared variance is {few:.3g} "
            f"at width {a.width} and {many:.3g} at {b.width}), so that sums over the width do not become Gaussian",
        )


def _power(name: str, samples: Sequence[Moments]) -> Fraction:
    """The power p of n in the variance, a multiple of 1/2, from the smallest width and the largest."""
    a, b = samples[0], samples[-1]
    slope = math.log(b.square / a.square) / math.log(b.width / a.width)
    error = math.sqrt(2 / a.entries + 2 / b.entries) / math.log(b.width / a.width)
    power = Fraction(round(2 * slope), 2)
    if error > 0.1:
        counts = ", ".join(f"{s.entries} at {s.width}" for s in samples)
        raise _unreadable(
            name,
            f"the module gave too few entries of it ({counts}); let the function that builds the module take its random numbers as "
            "a second argument, as in lambda width, rngs: ..., so that more can be drawn",
        )
    if abs(slope - float(power)) > 0.1 + SIGMAS * error:
        seen = ", ".join(f"{s.square:.4g} at {s.width}" for s in samples)
        raise _unreadable(name, f"its variance is no power of the width within the error of sampling: {seen}")
    return power


def _kind(kurtosis: float, entries: int) -> str:
    error = 0.01 + SIGMAS * math.sqrt(24 / entries)
    near = [kind for kind, value in KURTOSIS.items() if abs(kurtosis - value) <= error]
    return near[0] if len(near) == 1 else "unnamed law"


def _fitted(
    kind: str, values: Sequence[float], errors: Sequence[float], widths: np.ndarray, power: Fraction, sizes: Sequence[int],
    *, bounded: bool = False,
) -> Law:  # fmt: skip
    """The law of variance c n^p from c as seen at each width, with relative errors. bounded: by the largest entry, which is the largest
    of all widths then.

    The mean of fan-in n and fan-out f makes c n^p / (1 + f/n) instead, which tends to c n^p: every fixed size is tried as an f. Where no
    fraction fits, c is what these tend to, and not knowing f is part of its error where they do not show it.
    """
    seen, relative = np.array(values), np.array(errors) + ROUNDING
    fans: tuple[int, ...] = (0, *sorted(set(sizes))) if power < 0 else (0,)
    possible: list[float] = []
    for fan in fans:
        corrected = seen * (1 + fan / widths)
        scale, error = _pooled(corrected, relative, bounded)
        if np.any(np.abs(corrected / scale - 1) > 2 * SIGMAS * relative):
            continue
        exact = simple_fraction(scale, SIGMAS * error + 2 * ROUNDING, sizes, len(fans) if fan else 1)
        if exact is not None:
            return Law(kind, exact, power)
        possible.append(scale)
    if (bent := _extrapolated(seen, relative, widths)) is not None:
        scale, error = bent
        exact = simple_fraction(scale, SIGMAS * error + 2 * ROUNDING, sizes, len(fans) + 1)
        return Law(kind, scale, power, error=error) if exact is None else Law(kind, exact, power)
    scale, error = _pooled(seen, relative, bounded)
    return Law(kind, scale, power, error=math.hypot(error, *((c / scale - 1) / 2 for c in possible)))


def _pooled(values: np.ndarray, errors: np.ndarray, bounded: bool) -> tuple[float, float]:
    """One value of those at all widths, and its relative error."""
    if not bounded:
        return float(np.average(values, weights=errors**-2)), float(np.sum(errors**-2) ** -0.5)
    error = float(1 / np.sum(1 / errors))
    return float(np.max(values / (1 + errors / 2))) * (1 + error / 2), error


def _extrapolated(values: np.ndarray, errors: np.ndarray, widths: np.ndarray) -> tuple[float, float] | None:
    """c and its relative error of c / (1 + t/n); None where the values ask for no t but zero."""
    inverse, sigma = 1 / values, errors / values
    if len(values) > 2:
        design = np.stack([np.ones(len(values)), 1 / widths], 1)
        covariance = np.linalg.inv(design.T @ (design / sigma[:, None] ** 2))
        limit, trend = covariance @ design.T @ (inverse / sigma**2)
        if abs(trend) > 3 * math.sqrt(covariance[1, 1]) and limit > 0:
            return 1 / float(limit), math.sqrt(covariance[0, 0]) / float(limit)
    return None


# ------------------------------------------------------------------------------------------ fractions


def simple_fraction(value: float, tolerance: float, sizes: Sequence[int], tries: int = 1) -> Fraction | None:
    """The simple fraction that `value` is within a relative `tolerance`, or None.

    Simple are fractions r/f with r of small numerator and denominator and f a product of some of `sizes` (a fan-in),
    their squares (of a standard deviation), and decimals of one digit, as values or as standard deviations. About H
    fractions r have numerator times denominator at most H in one e-fold, so 2 H tolerance is the chance of a coincidence. tries: how
    many values are looked at, any of which may coincide.
    """
    fans = {math.prod(chosen) for k in range(len(sizes) + 1) for chosen in combinations(sizes, k)}
    candidates = []
    for fan in fans:
        r = _simplest(value * fan, tolerance)
        candidates.append((r.numerator * r.denominator * len(fans), r / fan))
    root = _simplest(math.sqrt(value), tolerance / 2)
    candidates.append((root.numerator * root.denominator, root**2))
    for square in (False, True):
        number = math.sqrt(value) if square else value
        digit = Fraction(f"{number:.0e}")
        if abs(float(digit) / number - 1) <= tolerance / (2 if square else 1):
            candidates.append((4, digit**2 if square else digit))
    chance, best = min(candidates)
    return best if 2 * tolerance * chance * tries <= COINCIDENCE else None


def _simplest(value: float, tolerance: float) -> Fraction:
    """The fraction of smallest denominator within a relative tolerance (a walk down the Stern-Brocot tree)."""
    low, high = Fraction(value * (1 - tolerance)), Fraction(value * (1 + tolerance))

    def between(low: Fraction, high: Fraction) -> Fraction:
        whole = math.ceil(low)
        if whole <= high and whole > 0:
            return Fraction(whole)
        base = math.floor(low)
        return base + 1 / between(1 / (high - base), 1 / (low - base))

    return between(low, high)
