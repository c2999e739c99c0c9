"""ReLU after batch norm (Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz 2019, "A mean field theory of batch
normalization", appendix E): the integrals over the Laplace variable, by adaptive and by dense quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import quad_vec

from tests.references import duals

__all__ = ["across_batches", "within_batch"]


def _relu(c: np.ndarray) -> np.ndarray:
    q = np.diag(c)
    return np.asarray(duals.relu.value(q[:, None], q[None], c))


def _centred(c: np.ndarray, parts: int) -> np.ndarray:
    size = len(c) // parts
    g = np.kron(np.eye(parts), np.eye(size) - 1 / size)
    return g @ c @ g


def _tilted(c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, float]:
    """The covariance and the mass under exp(-sum d z^2), by a symmetric root of d."""
    root = np.sqrt(d)
    whole = np.eye(len(c)) + 2 * root[:, None] * c * root
    inner = c - 2 * (c * root) @ np.linalg.solve(whole, root[:, None] * c)
    return (inner + inner.T) / 2, float(np.linalg.det(whole)) ** -0.5


def within_batch(x: np.ndarray | None, epsilon: float, covariance: Any = None) -> np.ndarray:
    """E[relu(z_i) relu(z_j) / (|z|^2 / B + epsilon)] for one batch x (B, d), z the centred preactivations."""
    c = x @ x.T / x.shape[1] if x is not None else covariance
    size = len(c)
    c = _centred(c, 1)

    def integrand(theta: float) -> np.ndarray:
        s = np.tan(theta) ** 2
        inner, mass = _tilted(c, np.full(size, s))
        return 2 * np.tan(theta) / np.cos(theta) ** 2 * np.exp(-s * size * epsilon) * mass * _relu(inner)

    return size * quad_vec(integrand, 0, np.pi / 2 - 1e-12, epsabs=1e-13, epsrel=1e-13)[0]


def across_batches(x: np.ndarray, y: np.ndarray, epsilon: float, nodes: int = 150) -> np.ndarray:
    """The same between two batches: a factor (|z|^2 / B + epsilon)^(-1/2) of either."""
    size, z = len(x), np.concatenate([x, y])
    c = _centred(z @ z.T / z.shape[1], 2)
    t, w = np.polynomial.legendre.leggauss(nodes)
    theta, w = (t + 1) * np.pi / 4, w * np.pi / 4
    s = np.tan(theta) ** 2
    w = 2 / np.cos(theta) ** 2 * w / np.sqrt(np.pi) * np.exp(-s * size * epsilon)  # s^(-1/2) ds
    total = np.zeros((size, size))
    for a, u in zip(s, w, strict=True):
        for b, v in zip(s, w, strict=True):
            inner, mass = _tilted(c, np.repeat([a, b], size))
            total += u * v * mass * _relu(inner)[:size, size:]
    return size * total
