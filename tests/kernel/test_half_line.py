"""The quadrature of the Laplace reduction, over spectra of every kind, against mpmath."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from tensorprog.kernel.half_line import ERROR, half_line, nodes_for

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
