"""What each optimisation gains: benchmarks/results/optimisations.md, with every one switched off in turn (docs/speed.md).

    python -m benchmarks.optimisations              # all cases, some minutes
    python -m benchmarks.optimisations fc           # those whose name begins so, printed only

The kernels take turns, so that a noisy machine slows all of them: what is reported is the ratio of medians.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from benchmarks import cases, study
from benchmarks.worker_ours import network
from tensorprog.runtime.optimisations import OPTIMISATIONS

OUT = study.RESULTS / "optimisations"
NAMES = (
    "fc-relu-d3", "fc-relu-d20", "fc-relu-d20-bias", "fc-relu-d3-gram4000", "fc-erf-d5-gram4000",
    "fc-swish-quad-d3-gram250", "cnn-flatten-8x8x1-gram100", "cnn-pool-8x8x1-gram40", "wide-resnet-8x8x3-gram24",
)  # fmt: skip
ROUNDS = 5


def measured(case: cases.Case) -> dict[str, Any]:
    """Median seconds of the whole kernel, and how many times as long it takes without each optimisation; float32."""
    random = np.random.default_rng(case.seed)
    inputs = [jnp.asarray(random.standard_normal((n, *case.shape)), jnp.float32) for n in (case.n1, case.n2) if n]
    kernel = tp.compile(network(case), jax.ShapeDtypeStruct(case.shape, np.float32))
    ways = {"": kernel} | {name: kernel.without(name) for name in OPTIMISATIONS}
    for way in ways.values():
        jax.block_until_ready(way(*inputs))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way(*inputs))
            seconds[name].append(time.perf_counter() - start)
    whole = float(np.median(seconds[""]))
    return {"case": case.title, "seconds": whole, **{n: float(np.median(seconds[n])) / whole for n in OPTIMISATIONS}}


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    factors = (f"{found[name]:.2g}" for name in OPTIMISATIONS)
    return f"| {found['case']} | {found['seconds']:.3g} | {' | '.join(factors)} |"


def main(prefixes: list[str]) -> None:
    """Measure the cases whose names begin so, or all, which replaces the results kept."""
    head = [
        "Seconds: NNGP and NTK, float32, warm. Then how many times as long the kernel takes without each optimisation (docs/speed.md);",
        "medians of runs in turns.",
        "",
        f"| case | seconds | {' | '.join(OPTIMISATIONS)} |",
        f"|---|---|{'---|' * len(OPTIMISATIONS)}",
    ]
    study.of_cases(OUT, "What each optimisation gains", NAMES, prefixes, measured, row, head)


if __name__ == "__main__":
    main(sys.argv[1:])
