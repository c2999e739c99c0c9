"""Time to derive and to compile deep and long networks, and the size of what is compiled: benchmarks/results/depth.md.

Each case is taken at half its depth and at the whole: what repeats becomes a loop, so the code stays the same and the time to
compile it as well; tracing and deriving follow the program, which grows. Nothing is run.

    python -m benchmarks.depth                      # all cases, some minutes
    python -m benchmarks.depth gru                  # one, printed only
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from benchmarks import study
from tensorprog import nn

OUT = study.RESULTS / "depth"


def transformer(blocks: int) -> Callable[[jax.Array], jax.Array]:
    """Pre-norm encoder blocks: two heads with 1/n logits, a hidden layer with GELU, residuals, positional embeddings."""

    def block(h: jax.Array) -> jax.Array:
        length, n, heads = len(h), h.shape[-1], 2
        normed = nn.layer_norm(h)
        k, v = (nn.dense(normed).reshape(length, heads, n // heads) for _ in range(2))
        weights = jax.nn.softmax(jnp.einsum("thc,shc->hts", k, k) / (n // heads))
        h = h + nn.dense(jnp.einsum("hts,shc->thc", weights, v).reshape(length, n))
        return h + nn.dense(jax.nn.gelu(nn.dense(nn.layer_norm(h)), approximate=False))

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x) + nn.weight((len(x), nn.width()))
        for _ in range(blocks):
            h = block(h)
        return nn.dense(nn.layer_norm(h).mean(0), features=1)

    return net


def residual_net(layers: int) -> Callable[[jax.Array], jax.Array]:
    """Convolutions of width 3 in residual blocks of one, and a readout of all positions."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.conv(x, (3, 3))
        for _ in range(layers - 1):
            h = h + nn.conv(jax.nn.relu(h), (3, 3), weight_var=2.0)
        return nn.dense(nn.flatten(jax.nn.relu(h)), features=1)

    return net


def gru(x: jax.Array) -> jax.Array:
    """A gated recurrent unit over the rows of x."""
    n, d = nn.width(), x.shape[1]
    scaled = lambda rows, columns: nn.weight((rows, columns)) / np.sqrt(columns)
    (wz, uz), (wr, ur), (wh, uh) = ((scaled(n, n), scaled(n, d)) for _ in range(3))
    h = jnp.zeros(n)
    for step in x:
        z, r = jax.nn.sigmoid(wz @ h + uz @ step), jax.nn.sigmoid(wr @ h + ur @ step)
        h = z * h + (1 - z) * jnp.tanh(wh @ (r * h) + uh @ step)
    return nn.dense(h, features=1)


CASES: dict[str, tuple[str, int, Callable[[int], tuple[Any, np.ndarray]], float | None]] = {
    "transformer": ("transformer, {} blocks, 32 tokens", 12, lambda n: (transformer(n), np.zeros((32, 16))), None),
    "residual": ("convolutional residual net, {} layers, 32 x 32", 50, lambda n: (residual_net(n), np.zeros((32, 32, 3))), None),
    "gru": ("GRU, {} steps (sampled at 3e-2)", 100, lambda n: (gru, np.zeros((n, 8))), 3e-2),
}  # fmt: skip


def measure(name: str, size: int) -> dict[str, Any]:
    """Seconds of each stage, and sizes, of one case."""
    title, _, make, tolerance = CASES[name]
    net, example = make(size)
    times: dict[str, float] = {}
    start = time.perf_counter()
    kernel = tp.compile(net, example, tolerance=tolerance)
    times["derive"] = time.perf_counter() - start
    x = [jax.ShapeDtypeStruct((1, *example.shape), jnp.float32)]
    start = time.perf_counter()
    lowered = jax.jit(kernel.functions.block).lower(x, x, {})
    times["lower"] = time.perf_counter() - start
    start = time.perf_counter()
    lowered.compile()
    times["compile"] = time.perf_counter() - start
    code = sum("=" in line for line in lowered.as_text().splitlines())
    sizes = {"instructions": len(kernel.program), "quantities": len(kernel.graph), "code": code}
    return {"what": title.format(size), "seconds": times, **sizes}


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    seconds = " | ".join(f"{found['seconds'][stage]:.1f}" for stage in ("derive", "lower", "compile"))
    return f"| {found['what']} | {found['instructions']} | {found['quantities']} | {found['code']} | {seconds} |"


def main(names: list[str]) -> None:
    """Measure the cases named, or all, which replaces the results kept."""
    tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), np.zeros(2))(
        np.ones((1, 2))
    )  # imports, first calls
    result = study.provenance()
    result["cases"] = []
    for name in names or CASES:
        for size in (CASES[name][1] // 2, CASES[name][1]):
            result["cases"].append(measure(name, size))
            print(row(result["cases"][-1]), flush=True)
    if names:
        return
    head = [
        "From the function to the compiled kernel (NNGP and NTK of a pair of inputs, float32), at half the depth and at the whole.",
        "Code: operations in what JAX hands to XLA. Seconds: `tp.compile`; scheduling and tracing; XLA.",
        "",
        "| network | instructions | quantities | code | derive | lower | compile |",
        "|---|---|---|---|---|---|---|",
    ]
    study.write(OUT, "Deep and long networks", result, [*head, *map(row, result["cases"])])


if __name__ == "__main__":
    main(sys.argv[1:])
