"""The machine's limit for one case: the inner products of the inputs, then one pass over them.

Every kernel starts from the covariance of the inputs (one GEMM) and ends with two matrices, NNGP and NTK. The
limit is the time of that GEMM plus reading its result once and writing two results of its size once. With
positions, the covariance is over those the readout asks for: equal positions (flatten) or all pairs of them
(pooling). A network whose layers each pass over a covariance too large for the cache cannot reach it.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from benchmarks import cases
from benchmarks.timing import Job, Prepared, load_inputs, read_job, run

# n, m: inputs; p, q: positions; c: channels.
PRODUCTS = {"none": "nc,mc->nm", "diagonal": "npc,mpc->nmp", "pairs": "npc,mqc->nmpq"}


def limit(positions: str, x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The GEMM, and two outputs from one reading of it (the barrier keeps that pass apart)."""
    if positions != "none":
        x1, x2 = (x.reshape(len(x), -1, x.shape[-1]) for x in (x1, x2))
    products = jax.lax.optimization_barrier(jnp.einsum(PRODUCTS[positions], x1, x2))
    return products + 1, products * 2


def prepare(positions: str, job: Job) -> Prepared:
    """The compiled limit on the job's inputs."""
    x1, x2 = (None if x is None else jnp.asarray(x) for x in load_inputs(job))
    start = time.perf_counter()
    compiled = jax.jit(limit, static_argnums=0).lower(positions, x1, x1 if x2 is None else x2).compile()
    compile_s = time.perf_counter() - start
    return Prepared(lambda: jax.block_until_ready(compiled(x1, x1 if x2 is None else x2)), 0.0, compile_s)


def main() -> None:
    """Measure the job given on the command line."""
    job = read_job()
    spec = next(c for c in cases.CASES if c.name == job.case)
    run(job, lambda: prepare(spec.positions, job), {"jax": jax.__version__})


if __name__ == "__main__":
    main()
