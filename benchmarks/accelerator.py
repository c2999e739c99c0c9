"""Large kernels on an accelerator, as fractions of what it can do: benchmarks/results/accelerator.md.

    python -m benchmarks.accelerator                            # gram of 50,000; images of 32 x 32 x 3
    python -m benchmarks.accelerator --inputs 2000 --images 4 --side 8      # small ones, on any machine, printed only

The limits are measured in the same run: bytes per second of a copy, and operations per second of a product of matrices in float32 at the
precision that kernels have ("highest"). A gram matrix is set against the product of its inputs and writing both results; the convolutional
kernel with pooling against adding and writing its covariances once a layer. Needs a JAX with the accelerator's plugin; on a CPU it runs too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from benchmarks import study
from tensorprog import nn

OUT = study.RESULTS / "accelerator"
FEATURES, DEPTH, LAYERS = 64, 3, 5
SIXTY_THOUSAND = 60_000


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median of warm calls."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def limits(size: int) -> dict[str, float]:
    """Bytes per second read and written, and float32 operations per second."""
    a = jnp.ones((size, size), jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return {
        "bytes_per_s": 2 * a.nbytes / seconds(lambda: copy(a)),
        "operations_per_s": 2 * size**3 / seconds(lambda: product(a)),
    }


def connected(inputs: int, bias: float, limit: dict[str, float]) -> dict[str, Any]:
    """The gram matrix of a fully connected ReLU network."""

    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(DEPTH):
            h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=bias))
        return nn.dense(h, features=1)

    x = jax.random.normal(jax.random.key(0), (inputs, FEATURES), jnp.float32)
    kernel = tp.compile(net, x[0])
    taken = seconds(lambda: kernel(x), 3)
    least = 2 * inputs**2 * FEATURES / limit["operations_per_s"] + 8 * inputs**2 / limit["bytes_per_s"]
    name = f"ReLU, depth {DEPTH}, {'biases' if bias else 'no biases'}, gram of {inputs:,}"
    return {"case": name, "seconds": taken, "limit_s": least, "rate": f"{inputs**2 / taken:.3g} pairs/s"}


def convolutional(images: int, side: int, limit: dict[str, float]) -> dict[str, Any]:
    """The gram matrix of a convolutional network with global average pooling."""

    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(LAYERS):
            h = jax.nn.relu(nn.conv(h, (3, 3), weight_var=2.0))
        return nn.dense(nn.global_avg_pool(h), features=1)

    x = jax.random.normal(jax.random.key(0), (images, side, side, 3), jnp.float32)
    kernel = tp.compile(net, x[0])
    taken = seconds(lambda: kernel(x), 3)
    pairs = images * (images + 1) / 2
    least = pairs * LAYERS * 2 * 2 * 4 * side**4 / limit["bytes_per_s"]  # both kernels read and written once a layer
    hours = SIXTY_THOUSAND**2 / 2 / (pairs / taken) / 3600
    rate = f"{images**2 / taken:.3g} images^2/s; {SIXTY_THOUSAND:,} images in {hours:,.0f} h"
    name = f"{LAYERS} convolutions, pooling, {side} x {side} x 3, gram of {images}"
    return {"case": name, "seconds": taken, "limit_s": least, "rate": rate}


def main() -> None:
    """Measure, print, and keep the results of the sizes that are asked for by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    given = parser.parse_args()
    device = jax.devices()[0]
    limit = limits(4096)
    result = study.provenance() | {"device": device.device_kind, "limits": limit}
    cases = [lambda b=b: connected(given.inputs, b, limit) for b in (0.0, 0.1)]
    result["cases"] = []
    body = [
        f"Device: {device.device_kind} ({device.platform}); {limit['bytes_per_s'] / 1e9:.3g} GB/s of a copy, "
        f"{limit['operations_per_s'] / 1e12:.3g} TFLOP/s of a product in float32.",
        "",
        "| NNGP and NTK, float32, warm | seconds | limit s | of the limit | rate |",
        "|---|---|---|---|---|",
    ]
    for measure in [*cases, lambda: convolutional(given.images, given.side, limit)]:
        found = measure()
        result["cases"].append(found)
        part = f"{found['limit_s'] / found['seconds']:.0%}"
        body.append(f"| {found['case']} | {found['seconds']:.3g} | {found['limit_s']:.3g} | {part} | {found['rate']} |")
        print(body[-1], flush=True)
    if (given.inputs, given.images, given.side) == tuple(parser.get_default(k) for k in ("inputs", "images", "side")):
        study.write(OUT, "Large kernels on an accelerator", result, body)


if __name__ == "__main__":
    main()
