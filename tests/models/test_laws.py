"""Initial laws read off draws, and the fractions their variances snap to."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import tensorprog as tp
from tensorprog.models.laws import Law, Moments, power_of_width, read_law, simple_fraction

WIDTHS = (120, 240, 360)
Draw = Callable[[np.random.Generator, int, tuple[int, ...]], np.ndarray]


def law(draw: Draw, shape: Callable[[int], tuple[int, ...]], count: int = 8, sizes: tuple[int, ...] = ()) -> Law:
    rng, samples = np.random.default_rng(0), []
    for width in WIDTHS:
        draws = np.stack([draw(rng, width, shape(width)).ravel() for _ in range(count)])
        per_draw = np.stack([draws.mean(1), (draws**2).mean(1)], 1)
        mean, square, fourth = draws.mean(), (draws**2).mean(), (draws**4).mean()
        samples.append(Moments(width, draws.size, mean, square, fourth, draws.min(), draws.max(), per_draw))
    return read_law("w", samples, sizes)


def truncated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal((*shape, 12))
    return np.take_along_axis(x, (abs(x) < 2).argmax(-1)[..., None], -1)[..., 0] / 0.87962566103423978


def columns(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Columns of length one."""
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=0)


square = lambda n: (n, n)
first = lambda n: (5, n)
scalar = lambda n: (1,)
scalars = lambda n: (n, 1)
readout = lambda n: (n, 10)
double = lambda n: (2 * n, 3)


@pytest.mark.parametrize(
    ("draw", "shape", "count", "sizes", "expected"),
    [
        (lambda r, n, s: r.standard_normal(s) / n**0.5, square, 8, (), Law("Gaussian", Fraction(1), Fraction(-1))),
        (lambda r, n, s: 0.02 * r.standard_normal(s), square, 8, (), Law("Gaussian", Fraction(1, 2500), Fraction(0))),
        (lambda r, n, s: r.uniform(-1, 1, s) / n**0.5, square, 8, (), Law("uniform", Fraction(1, 3), Fraction(-1))),
        (lambda r, n, s: r.uniform(-1, 1, s) / n**0.5, scalar, 9999, (), Law("uniform", Fraction(1, 3), Fraction(-1))),
        (lambda r, n, s: r.uniform(-1, 1, s) / 5**0.5, first, 8, (5,), Law("uniform", Fraction(1, 15), Fraction(0))),
        (lambda r, n, s: truncated(r, s) / 28, first, 20, (784,), Law("truncated normal", Fraction(1, 784), Fraction(0))),
        (lambda r, n, s: np.linalg.qr(r.standard_normal(s))[0], square, 2, (), Law("orthogonal", Fraction(1), Fraction(-1))),
        (lambda r, n, s: np.full(s, 0.5), square, 2, (), Law("constant", value=0.5)),
        (lambda r, n, s: np.linalg.qr(r.standard_normal(s).T)[0].T, first, 16, (5,), Law("orthogonal", Fraction(1), Fraction(-1))),
        # sums of squares that are always the same make no orthogonal matrix of it
        (lambda r, n, s: r.choice([-1.0, 1.0], s) / 5**0.5, first, 16, (5,), Law("Rademacher", Fraction(1, 5), Fraction(0))),
        (lambda r, n, s: r.choice([-1.0, 1.0], s) / n**0.5, square, 2, (), Law("Rademacher", Fraction(1), Fraction(-1))),
        (lambda r, n, s: columns(r, s), first, 16, (5,), Law("unnamed law", Fraction(1, 5), Fraction(0))),
        # the mean of fan-in and fan-out: a power of the width to leading order
        (lambda r, n, s: r.uniform(-1, 1, s) * (6 / (n + 10)) ** 0.5, readout, 16, (10,), Law("uniform", Fraction(2), Fraction(-1))),
        (lambda r, n, s: r.uniform(-1, 1, s) * (6 / (n + 1)) ** 0.5, scalars, 999, (1,), Law("uniform", Fraction(2), Fraction(-1))),
        (lambda r, n, s: truncated(r, s) * (2 / (n + 10)) ** 0.5, readout, 16, (10,), Law("truncated normal", Fraction(2), Fraction(-1))),
        (lambda r, n, s: r.standard_normal(s) * (2 / (n + 1)) ** 0.5, scalars, 4000, (1,), Law("Gaussian", Fraction(2), Fraction(-1))),
        # of width 2n: its own fixed size is 3, the correction 3/(2n)
        (lambda r, n, s: r.uniform(-1, 1, s) * (6 / (2 * n + 3)) ** 0.5, double, 16, (3,), Law("uniform", Fraction(1), Fraction(-1))),
        (lambda r, n, s: r.standard_normal(s) * (2 / (n + 5)) ** 0.5, first, 2000, (5,), Law("Gaussian", Fraction(2), Fraction(-1))),
    ],
)  # fmt: skip
def test_laws(draw: Draw, shape: Callable, count: int, sizes: tuple[int, ...], expected: Law) -> None:
    assert law(draw, shape, count, sizes) == expected


def test_what_is_no_simple_fraction_keeps_its_error() -> None:
    found = law(lambda r, n, s: 0.7316 * r.standard_normal(s) / n**0.5, square)
    assert isinstance(found.scale, float)
    assert abs(found.scale / 0.7316**2 - 1) < 5 * found.error < 0.02
    assert found.variance().endswith("%")


@pytest.mark.parametrize("fan", [0, 10])
def test_the_error_of_an_odd_scale_holds(fan: int) -> None:
    """Also where the mean of fan-in and fan-out bends it by f/n: it was taken from the largest width, 3% off, with an error of 1e-5."""
    found = law(lambda r, n, s: r.uniform(-1, 1, s) * (3 * 0.7316 / (n + fan)) ** 0.5, readout, 16, (10,))
    assert isinstance(found.scale, float)
    assert abs(found.scale / 0.7316 - 1) < 5 * found.error < 0.1


def test_another_law_is_called_unnamed() -> None:
    found = law(lambda r, n, s: r.laplace(size=s) / n**0.5, square, 32)
    assert found.kind == "unnamed law"
    assert abs(float(found.scale) / 2 - 1) < 0.02


@pytest.mark.parametrize(
    ("draw", "shape", "message"),
    [
        (lambda r, n, s: r.uniform(0, 1, s), square, "not centred"),
        (lambda r, n, s: np.arange(n * n).reshape(s) - (n * n - 1) / 2, square, "a table, not a random start"),
        (lambda r, n, s: np.full(s, n**-0.5), square, "depends on the width"),
        (lambda r, n, s: r.standard_normal(s) / (1 + np.log(n)), square, "no power of the width"),
        (lambda r, n, s: r.standard_normal(s), scalar, "as a second argument"),
        (lambda r, n, s: r.standard_normal(s) * (r.random(s) < 3 / n), square, "do not become Gaussian"),
    ],
)
def test_refusals(draw: Draw, shape: Callable, message: str) -> None:
    with pytest.raises(tp.NetworkError, match=message) as caught:
        law(draw, shape, 2)
    assert "init={'w'" in str(caught.value)


def test_fractions_are_not_found_by_chance() -> None:
    """Random numbers do not snap: the rate of coincidences is what is allowed."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(-5, 1, 2000))
    assert np.mean([simple_fraction(v, 1e-3, (3, 3, 7)) is not None for v in values]) < 0.25
    assert np.mean([simple_fraction(v, 1e-5, (3, 3, 7)) is not None for v in values]) < 0.05
    assert simple_fraction(1 / 27 * 1.00001, 1e-4, (3, 3)) == Fraction(1, 27)


@pytest.mark.parametrize(
    ("scale", "power", "text"),
    [
        (Fraction(1, 9), -1, "1/(9 n)"),
        (Fraction(1), -1, "1/n"),
        (Fraction(2), 0, "2"),
        (Fraction(2, 3), Fraction(-1, 2), "2/(3 n^(1/2))"),
        (Fraction(3), 1, "3 n"),
        (0.5353, -2, "0.5353/n^2"),
        (Fraction(0), 0, "0"),
    ],
)
def test_variances_read_well(scale: Fraction, power: int, text: str) -> None:
    assert power_of_width(scale, Fraction(power)) == text
