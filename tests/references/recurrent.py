"""The simple recurrent network: Yang 2019/2020, Tensor Programs I and II.

  g_t = sqrt(wv) W s_{t-1} / sqrt(n) + sqrt(uv) U x_t / sqrt(d) + sqrt(bv) b,   s_t = phi(g_t),  s_0 = 0

with one W, U, b for all times, so that states at different times are correlated:

  C_tr = wv E[s_{t-1} s'_{r-1}] + uv <x_t, x'_r> / d + bv                 (TP-I and TP-II, RNN example)
  T_tr = C_tr + wv E[phi'(g_{t-1}) phi'(g'_{r-1})] T_{t-1, r-1}

for all pairs of times (t, r).  TP-II sums over weights along the way back; this is the
same sum along the way forward.
"""

from __future__ import annotations

import numpy as np

from tests.references.duals import Array, Dual
from tests.references.gram import Gram, activation, average, positions


def states(x: Array, phi: Dual, w_var: float = 1.0, u_var: float = 1.0, b_var: float = 0.0) -> Gram:
    """All states s_1 .. s_T of sequences x (N, T, d), one position per time."""
    n, steps, d = x.shape
    drive = u_var * np.einsum("ntd,mrd->ntmr", x, x) / d + b_var
    covariance, tangent = drive.copy(), drive.copy()
    done = Gram(np.zeros_like(drive), np.zeros_like(drive), np.zeros((n, steps)))
    for t in range(steps):
        # After step t the entries with min(time, time') <= t are final.
        done = activation(Gram(covariance, tangent, np.zeros((n, steps))), phi)
        if t + 1 < steps:
            covariance = drive.copy()
            covariance[:, 1:, :, 1:] += w_var * done.nngp[:, :-1, :, :-1]
            tangent = drive.copy()
            tangent[:, 1:, :, 1:] += w_var * (done.nngp + done.ntk)[:, :-1, :, :-1]
    return done


def last(k: Gram) -> Gram:
    """The last state alone."""
    return positions(k, np.eye(k.nngp.shape[1])[-1:])


def averaged(k: Gram) -> Gram:
    """The mean of the states over time."""
    return positions(k, average(k.nngp.shape[1]))
