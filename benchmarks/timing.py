"""What every worker does around its kernel: read the job, time it, measure memory, write the answer.

A worker is one process for one case and one round, so that derivation and compilation are cold every time and
the peak of its memory is its own. It is given one argument, a job as JSON (`Job`), and leaves `<out>.json`,
`<out>-nngp.npy` and `<out>-ntk.npy`. Only numpy and the standard library here: each side brings its own JAX.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = ("nngp", "ntk")
Kernels = tuple[Any, Any]  # one array of shape (n1, n2) each
Call = Callable[[], Kernels]


@dataclass(frozen=True)
class Job:
    """One process's work; `rows`: only so many leading inputs, `nodes`: the peer's quadrature nodes."""

    case: str
    inputs: str
    out: str
    dtype: str = "float32"
    rows: int | None = None
    nodes: int | None = None
    budget_s: float = 2.0
    max_calls: int = 20
    save: bool = True

    def dump(self) -> str:
        """The job as the worker's one argument."""
        return json.dumps(asdict(self))


@dataclass
class Prepared:
    """What a worker hands over: a call that returns finished arrays, and how long making it took.

    `compile_s` is None where compilation happens inside the first call; it is then taken as what that
    call takes beyond a warm one.
    """

    call: Call
    build_s: float
    compile_s: float | None = None


def read_job() -> Job:
    """The job given on the command line."""
    return Job(**json.loads(sys.argv[1]))


def load_inputs(job: Job) -> tuple[np.ndarray, np.ndarray | None]:
    """The inputs in the job's dtype, cut to the leading rows; the second is None for a gram matrix."""
    with np.load(job.inputs) as data:
        x1, x2 = (data[key][: job.rows].astype(job.dtype) if key in data else None for key in ("x1", "x2"))
    return x1, x2


def run(job: Job, prepare: Callable[[], Prepared], versions: dict[str, str]) -> None:
    """Prepare, call once, call warm until the budget is spent, write times, memory and both matrices.

    A first call that takes ten times the budget without compiling anything is taken as it is, not repeated.
    """
    base_mb = peak_rss_mb()
    prepared = prepare()
    first_s, kernels = _timed(prepared.call)
    long = first_s > 10 * job.budget_s and prepared.compile_s is not None
    times = [first_s] if long else []
    while not long and _again(times, job):
        del kernels  # two results at once are nobody's peak memory
        seconds, kernels = _timed(prepared.call)
        times.append(seconds)
    warm = statistics.median(times)
    compile_s = _excess(first_s, warm) if prepared.compile_s is None else prepared.compile_s
    answer = {
        "calls_s": times,
        "compile_s": None if compile_s is None else prepared.build_s + compile_s,
        "first_value_s": prepared.build_s + (prepared.compile_s or 0.0) + first_s,
        "rss_base_mb": base_mb,
        "rss_peak_mb": peak_rss_mb(),
        "versions": {"python": platform.python_version(), **versions},
    }
    for name, matrix in zip(KERNELS, kernels if job.save else (), strict=False):
        np.save(f"{job.out}-{name}.npy", np.asarray(matrix))
    Path(f"{job.out}.json").write_text(json.dumps(answer))


def peak_rss_mb() -> float:
    """The peak resident memory of this process in MB.

    From /proc where there is one: getrusage may report the peak that a child inherits through fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _again(times: list[float], job: Job) -> bool:
    """Warm calls while the budget lasts; at least three, unless a single call takes longer than it."""
    if len(times) < 3:
        return not times or max(times) <= job.budget_s
    return sum(times) < job.budget_s and len(times) < job.max_calls


def _excess(first_s: float, warm_s: float) -> float | None:
    """What a first call takes beyond a warm one; None where that would drown in the noise of a long call."""
    return first_s - warm_s if first_s > 1.05 * warm_s else None


def _timed(call: Call) -> tuple[float, Kernels]:
    start = time.perf_counter()
    kernels = call()
    return time.perf_counter() - start, kernels
