"""The peer's side of benchmarks/expectations.py: nanoseconds per pair of each of its closed-form duals.

Run as `python -m benchmarks.worker_duals SIDE` in the peer's environment; prints one JSON object, name -> nanoseconds.
One layer after a dense one of two inputs, whose matrix product costs next to nothing; the NNGP kernel alone, jitted.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from neural_tangents import stax

LAYERS: dict[str, Any] = {
    "relu": stax.Relu(),
    "leaky_relu": stax.LeakyRelu(0.01),
    "gelu (exact)": stax.Gelu(),
    "Abs": stax.Abs(),
    "ABRelu": stax.ABRelu(-0.5, 2.0),
    "Erf": stax.Erf(),
    "Sigmoid_like": stax.Sigmoid_like(),
    "Sin": stax.Sin(),
    "Cos": stax.Cos(),
    "Rbf": stax.Rbf(),
    "Gabor": stax.Gabor(),
    "Gaussian": stax.Gaussian(),
    "Exp": stax.Exp(),
    "ExpNormalized": stax.ExpNormalized(),
    "Sign": stax.Sign(),
    "Polynomial": stax.Polynomial((1.0, 1.0, -0.5)),
    "Monomial (5)": stax.Monomial(5),
    "RectifiedMonomial (3)": stax.RectifiedMonomial(3),
    "Hermite (3)": stax.Hermite(3),
}


def nanoseconds(layer: Any, side: int) -> float:
    """Time per pair of a (side, side) block, float32; the best of seven."""
    x = np.random.default_rng(0).normal(size=(side, 2)).astype(np.float32)
    kernel = stax.serial(stax.Dense(1, parameterization="ntk"), layer)[2]
    run = jax.jit(lambda a, b: kernel(a, b, "nngp"))
    jax.block_until_ready(run(x, x[::-1]))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(run(x, x[::-1]))
        times.append(time.perf_counter() - start)
    return min(times) / side**2 * 1e9


if __name__ == "__main__":
    print(json.dumps({name: nanoseconds(layer, int(sys.argv[1])) for name, layer in LAYERS.items()}))
