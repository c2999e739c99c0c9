"""Delta functions of one Gaussian, against the definition: E[w delta'(z - c)] is minus the slope of w times the density at c."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import sympy as sp

from ntk_rules import expectation

u = sp.Symbol("u", real=True)
LAW = (1.3,)
DENSITY = mp.exp(-1 / (2 * mp.mpf("1.3"))) / mp.sqrt(2 * mp.pi * mp.mpf("1.3"))  # at 1


def test_times_zero() -> None:
    """What multiplies a delta function may vanish where it stands, as the slope of an even function does at zero."""
    smooth = expectation(sp.tanh(u) ** 2, (u,))
    both = expectation(sp.tanh(u) ** 2 + (sp.tanh(u) ** 2 - 1) * sp.DiracDelta(u, 1), (u,))
    assert both.value(LAW) == smooth.value(LAW)


def test_beside_a_slope() -> None:
    found = expectation(sp.tanh(u) * sp.DiracDelta(u - 1) + (1 - u) * sp.DiracDelta(u - 1, 1), (u,))
    np.testing.assert_allclose(found.value(LAW), float((mp.tanh(1) + 1) * DENSITY), rtol=1e-14)
