"""Small networks, their kernels and data that several tests use."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn


def net(x: Any) -> Any:
    """Two layers of ReLU with open variances."""
    h = jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=tp.hyper("b", 0.3)))
    return nn.dense(h, features=1)


def smooth(x: Any) -> Any:
    """One layer of erf: finite networks of it are close to linear in their parameters."""
    return nn.dense(jax.scipy.special.erf(nn.dense(x, weight_var=2.0, bias_var=0.5)), features=1, bias_var=0.1)


@cache
def kernel(name: str = "net") -> tp.Kernel:
    return tp.compile({"net": net, "smooth": smooth}[name], jnp.zeros(3))


def data(n: int = 12, m: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (n, 3), y (n,), test inputs (m, 3)."""
    rng = np.random.default_rng(seed)
    x, test = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    return x, np.sin(x.sum(1)) + 0.1 * x[:, 0], test


def relu_gram(x1: np.ndarray, x2: np.ndarray, w: float = 1.5, b: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """NNGP kernel and NTK of `net`, from the arc-cosine formulas (Cho and Saul 2009), in numpy."""
    c = w * x1 @ x2.T / 3 + b
    q1, q2 = (np.sqrt(w * np.square(x).sum(1) / 3 + b) for x in (x1, x2))
    norms = np.outer(q1, q2)
    cos = np.clip(c / norms, -1, 1)
    angle = np.arccos(cos)
    nngp = norms * (np.sqrt(1 - cos**2) + (np.pi - angle) * cos) / (2 * np.pi)
    return nngp, nngp + c * (np.pi - angle) / (2 * np.pi)
