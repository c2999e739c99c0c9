"""tensorprog's side: one case, timed through the public interface only.

Run as `python -m benchmarks.worker_ours JOB`. The network is an ordinary JAX function, and the time to derive
and compile is that of `tp.compile` plus what the first call takes beyond a warm one.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import tensorprog as tp
from benchmarks import cases
from benchmarks.cases import Act, Case, Conv, Dense, Flatten, GlobalAvgPool, Layer, Residual
from benchmarks.timing import Job, Prepared, load_inputs, read_job, run
from tensorprog import nn

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh_gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "swish": jax.nn.silu,
}


def network(spec: Case) -> Callable[[jax.Array], jax.Array]:
    """The case's network: a function of one example."""
    return lambda x: _forward(spec, spec.layers, x)


def _forward(spec: Case, layers: tuple[Layer, ...], x: jax.Array) -> jax.Array:
    for layer in layers:
        x = _layer(spec, layer, x)
    return x


def _layer(spec: Case, layer: Layer, x: jax.Array) -> jax.Array:
    variances = {"weight_var": spec.weight_var, "bias_var": spec.bias_var}
    match layer:
        case Dense(features=features):
            return nn.dense(x, features, **variances)
        case Conv(stride=stride):
            return nn.conv(x, (3, 3), strides=(stride, stride), padding="SAME", **variances)
        case Act(function=name):
            return FUNCTIONS[name](x)
        case Residual(main=main, shortcut=shortcut):
            return _forward(spec, main, x) + _forward(spec, shortcut, x)
        case Flatten():
            return nn.flatten(x)
        case GlobalAvgPool():
            return nn.global_avg_pool(x)
    raise TypeError(f"no counterpart for {layer!r}")


def prepare(spec: Case, job: Job) -> Prepared:
    """The compiled kernel of the case on the job's inputs."""
    x1, x2 = load_inputs(job)
    args = [jnp.asarray(x) for x in (x1, x2) if x is not None]
    start = time.perf_counter()
    kernel = tp.compile(network(spec), jax.ShapeDtypeStruct(spec.shape, job.dtype))

    def call() -> tuple[jax.Array, jax.Array]:
        kernels = kernel(*args)
        return jax.block_until_ready((kernels.nngp, kernels.ntk))

    return Prepared(call, time.perf_counter() - start)


def _version() -> str:
    try:
        return importlib.metadata.version("tensorprog")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, from its source tree)"


def main() -> None:
    """Measure the job given on the command line."""
    job = read_job()
    jax.config.update("jax_enable_x64", job.dtype == "float64")
    spec = next(c for c in cases.CASES if c.name == job.case)
    run(job, lambda: prepare(spec, job), {"tensorprog": _version(), "jax": jax.__version__})


if __name__ == "__main__":
    main()
