"""The peer's side: one case, timed in the peer's own environment, with nothing but the peer's interface.

Run as `python -m benchmarks.worker_peer JOB` by the interpreter that environment.py sets up. The kernel
function is jitted whole, both kernels asked for together: the fastest way its documentation knows. Trace and
compile time is that of `jit(f).lower(x).compile()`, so it contains no execution.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
from neural_tangents import stax

from benchmarks import cases
from benchmarks.cases import Act, Case, Conv, Dense, Flatten, GlobalAvgPool, Layer, Residual
from benchmarks.timing import Job, Prepared, load_inputs, read_job, run

GET = ("nngp", "ntk")
WIDTH = 512  # of no consequence for the limit; the peer wants a number

CLOSED: dict[str, Callable[[], Any]] = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}
NUMERICAL: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh_gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "swish": jax.nn.silu,
}


def stack(spec: Case, layers: tuple[Layer, ...], nodes: int | None) -> Any:
    """The peer's layer for a sequence of ours."""
    return stax.serial(*(_layer(spec, layer, nodes) for layer in layers))


def _layer(spec: Case, layer: Layer, nodes: int | None) -> Any:
    stds = {"W_std": math.sqrt(spec.weight_var), "b_std": math.sqrt(spec.bias_var) if spec.bias_var else None}
    match layer:
        case Dense(features=features):
            return stax.Dense(features or WIDTH, parameterization="ntk", **stds)
        case Conv(stride=stride):
            return stax.Conv(WIDTH, (3, 3), (stride, stride), padding="SAME", parameterization="ntk", **stds)
        case Act(function=name):
            return CLOSED[name]() if nodes is None else stax.ElementwiseNumerical(NUMERICAL[name], deg=nodes)
        case Residual(main=main, shortcut=shortcut):
            other = stack(spec, shortcut, nodes) if shortcut else stax.Identity()
            return stax.serial(stax.FanOut(2), stax.parallel(stack(spec, main, nodes), other), stax.FanInSum())
        case Flatten():
            return stax.Flatten()
        case GlobalAvgPool():
            return stax.GlobalAvgPool()
    raise TypeError(f"no counterpart for {layer!r}")


def prepare(spec: Case, job: Job) -> Prepared:
    """The compiled kernel of the case on the job's inputs."""
    x1, x2 = load_inputs(job)
    args = [jnp.asarray(x) for x in (x1, x2) if x is not None]
    start = time.perf_counter()
    _, _, kernel_fn = stack(spec, spec.layers, job.nodes)
    if spec.peer_batch and job.rows is None:
        batched = nt.batch(kernel_fn, batch_size=spec.peer_batch)
        return Prepared(lambda: jax.block_until_ready(tuple(batched(*args, get=GET))), time.perf_counter() - start)

    def both(*xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernels = kernel_fn(*xs, get=GET)
        return kernels.nngp, kernels.ntk

    build_s = time.perf_counter() - start
    start = time.perf_counter()
    compiled = jax.jit(both).lower(*args).compile()
    return Prepared(lambda: jax.block_until_ready(compiled(*args)), build_s, time.perf_counter() - start)


def main() -> None:
    """Measure the job given on the command line."""
    job = read_job()
    jax.config.update("jax_enable_x64", job.dtype == "float64")
    spec = next(c for c in cases.CASES if c.name == job.case)
    run(job, lambda: prepare(spec, job), {"neural_tangents": nt.__version__, "jax": jax.__version__})


if __name__ == "__main__":
    main()
