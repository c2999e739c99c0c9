"""Fully connected networks: Jacot et al. 2018, "Neural Tangent Kernel".

Proposition 1 and Theorem 1 with the weights scaled by sqrt(weight_var) and the biases
by sqrt(bias_var) (their beta), W and b standard Gaussian and trainable:

  S_1 = wv <x, x'> / d + bv                       T_1 = S_1
  S_{l+1} = wv E[phi(u) phi(v)] + bv              T_{l+1} = S_{l+1} + wv E[phi'(u) phi'(v)] T_l

with (u, v) ~ N(0, S_l).  ``depth`` counts the hidden layers; a readout follows.
"""

from __future__ import annotations

import numpy as np

from tests.references.duals import Array, Dual


def kernels(x: Array, phi: Dual, depth: int, weight_var: float = 1.0, bias_var: float = 0.0) -> tuple[Array, Array]:
    """(nngp, ntk) of the readout on inputs x (N, d), each (N, N), in the dtype of x."""
    covariance = weight_var * (x @ x.T) / x.shape[-1] + bias_var
    tangent = covariance
    for _ in range(depth):
        q = np.diagonal(covariance)
        q1, q2 = np.broadcast_arrays(q[:, None], q[None, :])
        slope = phi.slope(q1, q2, covariance)
        covariance = weight_var * phi.value(q1, q2, covariance) + bias_var
        tangent = covariance + weight_var * slope * tangent
    return covariance, tangent


def network_on_sphere(cosine: Array, depth: int) -> tuple[Array, Array]:
    """ReLU, weight_var = 2, no bias, |x|^2 = d: kernels as functions of the cosine.

    Bietti & Mairal 2019, eqs. (2)-(4): k_l = kappa_1(k_{l-1}), and
    T_l = T_{l-1} kappa_0(k_{l-1}) + k_l, starting from 2 <x, x'> / d = 2 cosine here.
    """
    kappa0 = lambda c: 1 - np.arccos(c) / np.pi
    kappa1 = lambda c: (c * (np.pi - np.arccos(c)) + np.sqrt(1 - c * c)) / np.pi
    k, t = cosine, cosine
    for _ in range(depth):
        k, t = kappa1(k), t * kappa0(k) + kappa1(k)
    return 2 * k, 2 * t
