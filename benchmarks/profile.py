"""Where the time of a matrix goes: benchmarks/results/profile.md, the parts of warm calls beside what alone cannot be saved.

    python -m benchmarks.profile                    # all cases, some minutes
    python -m benchmarks.profile fc                 # those whose name begins so, printed only

Of the cases whose targets are hardest. Tile after tile, so that parts add up (XLA still spreads a large operation over the cores). Beside
them the time with all cores, tiles at once, as a user has it, and that of a process that may use one core only: what two cores gain.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from benchmarks import cases, study
from benchmarks.worker_limit import limit
from benchmarks.worker_ours import network
from ntk_rules.special import signed_turns
from tensorprog.runtime import pieces
from tensorprog.runtime.assembly import HostMatrices

OUT = study.RESULTS / "profile"
NAMES = (
    "fc-relu-d3", "fc-relu-d3-bias", "fc-relu-d20", "fc-relu-d20-bias", "fc-relu-d3-gram4000", "fc-relu-d20-gram4000", "fc-erf-d5",
    "fc-erf-d5-gram4000", "fc-gelu-closed-d3-gram1000", "fc-swish-quad-d3-gram250", "fc-tanh-gelu-quad-d3-gram250", "cnn-flatten-8x8x1-gram100",
    "cnn-pool-8x8x1-gram40", "cnn-pool-16x16x3-gram16", "wide-resnet-8x8x3-gram24",
)  # fmt: skip
ROUNDS = 9
ONE_CORE, FIRST = "--on-one-core", "--first-call"
FIRST_PARTS = ("derive", "trace", "compile", "run")
PARTS = ("tiles", "other halves", "writing", "computed again", "the rest")


@contextmanager
def parts_of(seconds: dict[str, float]) -> Iterator[None]:
    """Adds to `seconds` what the parts of every matrix take that is assembled within."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            made = jax.block_until_ready(function(*args, **kwargs))
            seconds[name] += time.perf_counter() - start
            return made

        return call

    begin = pieces._begin

    def begun(made: Any, piece: Any, work: Any, code: Any, halves: Any, *rest: Any) -> Any:
        return begin(made, piece, work, timed("tiles", code), halves and timed("other halves", halves), *rest)

    with (
        mock.patch.object(pieces, "_begin", begun),
        mock.patch.object(pieces, "_mend", timed("computed again", pieces._mend)),
        mock.patch.object(HostMatrices, "put", timed("writing", HostMatrices.put)),
    ):
        yield


def measured(case: cases.Case) -> dict[str, Any]:
    """Median seconds of a call, tile after tile, and of its parts; with all cores and on one alone; and of one product of the inputs, tile
    by tile, and of copying two arrays of the result's size into fresh memory."""
    at_once, inputs = _compiled(case)
    kernel = at_once.without("threads")
    jax.block_until_ready(kernel(*inputs))
    found: dict[str, list[float]] = defaultdict(list)
    product, copy = _product(inputs), _copy(len(inputs[0]), len(inputs[-1]))
    for _ in range(ROUNDS):
        seconds: dict[str, float] = defaultdict(float)
        start = time.perf_counter()
        with parts_of(seconds):
            jax.block_until_ready(kernel(*inputs))
        whole = time.perf_counter() - start
        for name in PARTS[:-1]:
            found[name].append(seconds[name])
        found["whole"].append(whole)
        found["the rest"].append(whole - sum(seconds.values()))
        for name, step in (("product", product), ("copy", copy)):
            start = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    alone, first = _apart(ONE_CORE, case), _apart(FIRST, case)
    whole, busy = _median(at_once, inputs)
    return {
        "case": case.title,
        **medians,
        "all cores": whole,
        "processor": busy,
        "limit": _limit(case, inputs),
        "arithmetic": _arithmetic(case),
        "one core": alone,
        "first call": first,
    }


def _apart(what: str, case: cases.Case) -> Any:
    """What another process finds."""
    command = [sys.executable, "-m", "benchmarks.profile", what, case.name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _compiled(case: cases.Case) -> tuple[tp.Kernel, list[jax.Array]]:
    """The case's kernel, and its inputs."""
    random = np.random.default_rng(case.seed)
    inputs = [jnp.asarray(random.standard_normal((n, *case.shape)), jnp.float32) for n in (case.n1, case.n2) if n]
    return tp.compile(network(case), jax.ShapeDtypeStruct(case.shape, np.float32)), inputs


def _median(kernel: tp.Kernel, inputs: list[jax.Array]) -> tuple[float, float]:
    """Median seconds of warm calls, and of the processor: those of all cores together."""
    return _medians(lambda: kernel(*inputs))


def _medians(call: Callable[[], Any]) -> tuple[float, float]:
    found = []
    for _ in range(ROUNDS + 2):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - start, time.process_time() - busy))
    seconds, of_cores = np.median(found[2:], axis=0)
    return float(seconds), float(of_cores)


def first_call(name: str) -> None:
    """Print the seconds of derivation, of tracing and lowering, of XLA's compilation while nothing is traced, and of what else the first
    call does; and how many fused loops XLA has compiled."""
    spans: dict[str, list[tuple[float, float]]] = {"trace": [], "compile": []}
    known = {"jaxpr_trace": "trace", "jaxpr_to_mlir_module": "trace", "backend_compile": "compile"}

    def heard(event: str, duration: float, **_: Any) -> None:
        part, now = known.get(event.split("/")[-1].removesuffix("_duration")), time.perf_counter()
        if part is not None:
            spans[part].append((now - duration, now))

    codes: list[Any] = []
    to_code = jax.stages.Lowered.compile

    def compiled(lowered: jax.stages.Lowered, *args: Any, **kwargs: Any) -> Any:
        codes.append(to_code(lowered, *args, **kwargs))
        return codes[-1]

    jax.block_until_ready(jnp.ones(3) + 1)
    start = time.perf_counter()
    kernel, inputs = _compiled(next(case for case in cases.CASES if case.name == name))
    derived = time.perf_counter()
    jax.monitoring.register_event_duration_secs_listener(heard)
    with mock.patch.object(jax.stages.Lowered, "compile", compiled):
        jax.block_until_ready(kernel(*inputs))
    whole = time.perf_counter() - derived
    trace, both = _covered(spans["trace"]), _covered(spans["trace"] + spans["compile"])
    loops = sum(code.as_text().count(" fusion(") for code in codes)
    parts = {"derive": derived - start, "trace": trace, "compile": both - trace, "run": whole - both}
    print(json.dumps({**parts, "loops": loops}))


def _covered(spans: list[tuple[float, float]]) -> float:
    """How long some span lasts, of which others may be parts."""
    total, end = 0.0, -np.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def on_one_core(name: str) -> None:
    """Print the median seconds of a case in this process, kept to one core (where the system can)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(_median(*_compiled(next(case for case in cases.CASES if case.name == name)))[0])


def _product(inputs: list[jax.Array]) -> Callable[[], None]:
    """The inner products of the inputs, in tiles that stay in the cache."""
    x, y = (a.reshape(len(a), -1) for a in (inputs[0], inputs[-1]))
    tile = jax.jit(partial(jnp.matmul, precision="highest"))
    rows = [x[i : i + 512] for i in range(0, len(x), 512)]
    columns = [y[i : i + 512].T for i in range(0, len(y), 512)]
    half = len(inputs) == 1

    def run() -> None:
        for i, a in enumerate(rows):
            for b in columns[i if half else 0 :]:
                jax.block_until_ready(tile(a, b))

    run()
    return run


def _limit(case: cases.Case, inputs: list[jax.Array]) -> float:
    """Seconds of the limit that the comparison has: one product of the inputs, read once, and two results of its size."""
    x, y = inputs[0], inputs[-1]
    compiled = jax.jit(limit, static_argnums=0).lower(case.positions, x, y).compile()
    return _medians(lambda: compiled(x, y))[0]


def _arithmetic(case: cases.Case) -> float | None:
    """Seconds of the layers' arithmetic alone, of ReLU with biases, which are computed one by one: the closed forms of nngp and ntk, as XLA
    compiles them, over an array that stays in the caches of the cores. None for other networks."""
    functions = [layer.function for layer in case.layers if isinstance(layer, cases.Act)]
    if case.positions != "none" or not case.bias_var or set(functions) != {"relu"}:
        return None
    shape, steps = (256, 256), 100

    @jax.jit
    def layers(both: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        def layer(_: int, both: jax.Array) -> jax.Array:
            nngp, ntk = jnp.real(both), jnp.imag(both)
            rho = jnp.clip(nngp * rows * columns, -1, 1)
            sine = jnp.sqrt((1 - rho) * (1 + rho))
            slope = signed_turns(rho, sine) + 0.25
            value = nngp * slope + rows * columns * sine
            return jax.lax.complex(
                case.weight_var * value + case.bias_var, case.weight_var * (value + ntk * slope) + case.bias_var
            )

        return jax.lax.fori_loop(0, steps, layer, both)

    random = np.random.default_rng(case.seed)
    both = jnp.asarray(random.uniform(-1, 1, shape) + 1j * random.uniform(0, 1, shape), jnp.complex64)
    sizes = jnp.full((shape[0], 1), 0.5, jnp.float32), jnp.full((1, shape[1]), 0.5, jnp.float32)
    seconds = _medians(lambda: layers(both, *sizes))[0]
    pairs = case.n1 * case.n2 if case.n2 else case.n1 * (case.n1 + 1) // 2
    return seconds / (steps * math.prod(shape)) * len(functions) * pairs


def _copy(n1: int, n2: int) -> Callable[[], None]:
    source = np.ones((n1, n2), np.float32)
    return lambda: [source.copy() for _ in range(2)] and None


def row(found: dict[str, Any]) -> str:
    """A line of the table, in milliseconds."""
    first = (found["first call"][name] for name in FIRST_PARTS)
    numbers = (
        found[name]
        for name in ("all cores", "processor", "limit", "arithmetic", "one core", "whole", *PARTS, "product", "copy")
    )
    milliseconds = " | ".join("-" if n is None else f"{1e3 * n:.3g}" for n in numbers)
    return f"| {found['case']} | {milliseconds} | {' / '.join(f'{n:.2g}' for n in first)} | {found['first call']['loops']} |"


def main(prefixes: list[str]) -> None:
    """Measure the cases whose names begin so, or all, which replaces the results kept."""
    before, after = (
        ("all cores", "processor", "limit", "arithmetic", "one core", "tile after tile"),
        ("product alone", "two copies", "first call", "fused loops"),
    )
    columns = (*before, *PARTS, *after)
    head = [
        "Milliseconds of warm calls for NNGP and NTK, float32, medians: with all cores, as users have it, and the time of all cores together",
        "that it takes; the limit of the comparison (one product of the inputs, read once, and two results); where layers are computed one by",
        "one, their arithmetic alone, over an array in the caches, with all cores; in a process kept to one core; and tile after",
        "tile, as a whole and in parts. Beside them one product of the inputs alone and two copies of the result into fresh",
        "memory, which no way to compute it can save. Last, in seconds, the first call of a process: deriving the kernel, tracing and",
        "lowering it, XLA's compilation while nothing is traced, and the rest; and how many fused loops XLA compiles in it. What binds:",
        "docs/speed.md.",
        "",
        f"| case | {' | '.join(columns)} |",
        f"|{'---|' * (1 + len(columns))}",
    ]
    study.of_cases(OUT, "Where the time goes", NAMES, prefixes, measured, row, head)


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE_CORE]:
        on_one_core(sys.argv[2])
    elif sys.argv[1:2] == [FIRST]:
        first_call(sys.argv[2])
    else:
        main(sys.argv[1:])
