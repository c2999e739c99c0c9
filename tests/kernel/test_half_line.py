"""The quadrature of the Laplace reduction, over spectra of every kind, against mpmath."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from tensorprog.kernel.half_line import ERROR, End, half_line, last_of, nodes_for

SPECTRA = {"one": [1.0], "few": [3.0, 1.0, 0.1], "many": [1.0] * 8, "spread": [10.0, 1.0, 1e-2, 1e-4, 1e-6]}


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum(name: str, epsilon: float) -> None:
    spectrum = SPECTRA[name]
    for k in (1, 3, 6):
        if epsilon == 0 and len(spectrum) <= k:
            continue  # the integral is infinite
        s, w = (np.asarray(a) for a in half_line(nodes_for([epsilon]), sum(spectrum), epsilon))
        decay = np.prod([1 / np.sqrt(1 + 2 * s * q) for q in spectrum], axis=0)
        found = np.sum(w * s ** (k / 2) * np.exp(-s * epsilon) * decay) / math.gamma(k / 2)

        def integrand(x, k=k):
            s = mp.exp(x)
            return s ** (mp.mpf(k) / 2) * mp.exp(-epsilon * s) / mp.sqrt(mp.fprod(1 + 2 * s * q for q in spectrum))

        with mp.workdps(25):
            ends = [*range(-120, 20, 4), *(range(20, 130, 5) if not epsilon else [20])]
            wanted = float(mp.quad(integrand, ends) / mp.gamma(mp.mpf(k) / 2))
        assert abs(found / wanted - 1) < ERROR


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 3e-5)])
@pytest.mark.parametrize("spectrum", [[1.0] * 3, [3.0, 1.0, 0.1], [1.0] * 9])
def test_what_lies_beyond_the_last_node(spectrum: list[float], dtype: type, tolerance: float) -> None:
    """E[1/Q] without an epsilon, where what is beyond falls like s^(1-rank/2): 1e-7 of rank three (1e-3 in float32)."""
    made, _ = _summed(spectrum, 2, dtype)
    root = lambda s: mp.sqrt(mp.fprod(1 + 2 * s * q for q in spectrum))
    wanted = float(mp.quad(lambda x: mp.exp(x) / root(mp.exp(x)), [*range(-60, 120, 5)]))
    assert abs(made / wanted - 1) < tolerance


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_infinite_is_no_number(dtype: type) -> None:
    """E[1/Q] of rank two and one, and of a third direction that is smaller than rounding; the moments that exist are numbers."""
    for spectrum in ([1.0, 1.0], [1.0], [1.0, 1.0, 1e-20]):
        assert np.isnan(_summed(spectrum, 2, dtype)[0])
    made, size = _summed([1.0, 1.0], 1, dtype)
    assert abs(made - math.sqrt(math.pi / 2)) < 2e-5 * size  # E[1/r] in the plane


def _summed(spectrum: list[float], k: int, dtype: type) -> tuple[float, float]:
    """E[Q^(-k/2)] without an epsilon, with what lies beyond the last node; and the sum over the nodes."""
    nodes = nodes_for([0.0])
    trace = np.asarray(sum(spectrum), dtype)
    s, w = (np.asarray(a, dtype) for a in half_line(nodes, trace, 0.0, last_of(dtype)))
    terms = w * s ** (k / 2) / math.gamma(k / 2)
    for q in spectrum:
        terms = terms / np.sqrt(1 + 2 * s * dtype(q))
    end, seen = End.of(0, nodes, dtype), (np.zeros((), dtype),) * 4
    for i, term in enumerate(terms):
        seen = end.seeing(seen, (np.asarray(i),), term)
    total = float(np.sum(terms))
    return total + float(end.beyond(seen, abs(total))), total
