"""How time and memory grow with the number of inputs, depth, positions and window: benchmarks/results/growth.md and its picture.

    python -m benchmarks.growth                     # all, some minutes; the picture needs matplotlib, of the demo's extra
    python -m benchmarks.growth positions           # one kind of growth, printed only

Each point is a process of its own: the median of warm calls, both kernels in float32, and the process's high-water mark of memory beyond
what it had before the call. An exponent is the slope of log time over log size, of the larger half of the sizes, where what does not
grow is small; beside it stands what theory says.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from benchmarks import study
from tensorprog import nn

OUT = study.RESULTS / "growth"
PICTURE = study.ROOT / "docs" / "images" / "growth.png"
Net = Callable[[jax.Array], jax.Array]


def connected(depth: int, bias: float) -> Net:
    """ReLU layers, of which those with biases are computed one by one (docs/speed.md)."""

    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(depth):
            h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=bias))
        return nn.dense(h, features=1)

    return net


def convolution(pooled: bool, window: int) -> Net:
    """Three convolutions over a line of positions."""

    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(3):
            h = jax.nn.relu(nn.conv(h, (window,), weight_var=2.0))
        return nn.dense(nn.global_avg_pool(h) if pooled else nn.flatten(h), features=1)

    return net


@dataclass(frozen=True)
class Growth:
    """What grows: its sizes; what makes network and inputs of a size; the exponents of time and memory by theory, and why."""

    title: str
    sizes: tuple[int, ...]
    make: Callable[[int], tuple[Net, tuple[int, ...]]]
    theory: tuple[float, float]
    why: str


GROWTHS = {
    "inputs-series": Growth(
        "inputs N, ReLU depth 3, no biases", (500, 1000, 2000, 4000, 8000), lambda n: (connected(3, 0.0), (n, 64)),
        (2, 2), "N^2 pairs, and results of that size",
    ),
    "inputs": Growth(
        "inputs N, ReLU depth 3, biases", (500, 1000, 2000, 4000, 8000), lambda n: (connected(3, 0.1), (n, 64)),
        (2, 2), "the same",
    ),
    "depth-series": Growth(
        "depth, ReLU, no biases, N = 2000", (2, 8, 32, 128), lambda depth: (connected(depth, 0.0), (2000, 64)),
        (0, 0), "one polynomial of the angle, whatever the depth",
    ),
    "depth": Growth(
        "depth, ReLU, biases, N = 2000", (2, 8, 32, 128), lambda depth: (connected(depth, 0.1), (2000, 64)),
        (1, 0), "layer after layer, in the same memory",
    ),
    "positions": Growth(
        "positions P, averaged, N = 16", (32, 64, 128, 256), lambda p: (convolution(True, 3), (16, p, 3)),
        (2, 2), "covariances of every two positions, a few pairs of inputs at a time",
    ),
    "positions-flat": Growth(
        "positions P, flattened, N = 100", (64, 128, 256, 512, 1024), lambda p: (convolution(False, 3), (100, p, 3)),
        (1, 1), "covariances of equal positions alone",
    ),
    "window": Growth(
        "window k, averaged, P = 128, N = 16", (3, 7, 15, 31, 63), lambda k: (convolution(True, k), (16, 128, 3)),
        (1, 0), "k shifts are added; the rest does not depend on k",
    ),
}  # fmt: skip


def one(name: str, size: int) -> dict[str, float]:
    """Median seconds of a warm call, and the megabytes that the calls added to the process's high-water mark."""
    net, shape = GROWTHS[name].make(size)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    kernel = tp.compile(net, jax.ShapeDtypeStruct(shape[1:], jnp.float32))
    jax.block_until_ready(kernel(x[:4]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 4 or (time.perf_counter() - begun < 3 and len(seconds) < 30):
        start = time.perf_counter()
        jax.block_until_ready(kernel(x))
        seconds.append(time.perf_counter() - start)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "seconds": float(np.median(seconds[1:])),
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit,
    }


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """The slope of the logarithms, over the larger half of the sizes."""
    last = len(sizes) // 2 + 1
    return float(np.polyfit(np.log(sizes[-last:]), np.log(np.maximum(values[-last:], 1e-9)), 1)[0])


def measured(name: str) -> dict[str, Any]:
    """All sizes of one kind of growth, a process each."""
    found = []
    for size in GROWTHS[name].sizes:
        command = [sys.executable, "-m", "benchmarks.growth", "--one", name, str(size)]
        done = subprocess.run(command, cwd=study.ROOT, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name} {size}: {found[-1]['seconds']:.3g} s, {found[-1]['megabytes']:.0f} MB", flush=True)
    sizes = np.array(GROWTHS[name].sizes, float)
    curves = {key: [point[key] for point in found] for key in ("seconds", "megabytes")}
    slopes = {f"{key} exponent": exponent(sizes, np.array(curve)) for key, curve in curves.items()}
    return {"name": name, "sizes": sizes.tolist(), **curves, **slopes}


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    growth = GROWTHS[found["name"]]
    ends = [f"{found[key][0]:.3g} to {found[key][-1]:.3g}" for key in ("seconds", "megabytes")]
    slopes = [
        f"{found[f'{key} exponent']:.2f} ({theory:g})"
        for key, theory in zip(("seconds", "megabytes"), growth.theory, strict=True)
    ]
    span = f"{growth.sizes[0]} to {growth.sizes[-1]}"
    return f"| {growth.title} | {span} | {ends[0]} | {slopes[0]} | {ends[1]} | {slopes[1]} | {growth.why} |"


def draw(results: list[dict[str, Any]]) -> None:
    """Time and memory over size, with the exponents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5.8))
    for ax, key, label in zip(axes, ("seconds", "megabytes"), ("seconds", "MB beyond the start"), strict=True):
        for found in results:
            title = f"{GROWTHS[found['name']].title}: {found[f'{key} exponent']:.2f}"
            ax.loglog(found["sizes"], np.maximum(found[key], 1e-4), "o-", label=title)
        ax.set_xlabel("size")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(
            fontsize=7, title="what grows: exponent", title_fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12)
        )
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=120)
    print(f"wrote {PICTURE}")


def main(arguments: list[str]) -> None:
    """Measure all kinds of growth, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(GROWTHS)}")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]))))
        return
    unknown = sorted(set(given.names) - set(GROWTHS))
    if unknown:
        parser.error(f"{unknown[0]!r} is no kind of growth, expected some of {', '.join(GROWTHS)}")
    result = study.provenance()
    result["growths"] = [measured(name) for name in given.names or GROWTHS]
    print("\n".join(map(row, result["growths"])))
    if given.names:
        return
    body = [
        "NNGP and NTK of gram matrices, float32, warm: median seconds, and what the calls add to the high-water mark of memory.",
        "Exponents are of the larger half of the sizes; in brackets what theory says of large sizes.",
        "",
        "| what grows | sizes | seconds | exponent (theory) | MB | exponent (theory) | why |",
        "|---|---|---|---|---|---|---|",
        *map(row, result["growths"]),
        "",
        "![time and memory over size](../../docs/images/growth.png)",
    ]
    draw(result["growths"])
    study.write(OUT, "How time and memory grow", result, body)


if __name__ == "__main__":
    main(sys.argv[1:])
