"""Time tensorprog and the peer side by side: `python -m benchmarks.compare` (or `make benchmark`).

For every case, seeded inputs are written to disk and worker processes of the two sides take turns on them
(ours first in one round, the peer first in the next), so that a busy machine is busy for both. A row
holds medians over the rounds, their ratio, the machine's limit measured in the same turns, derive + compile
time, peak memory, and the largest errors against both sides' float64: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cases, report
from benchmarks.cases import Case
from benchmarks.environment import BENCH, ROOT, PeerUnavailable, ensure_peer
from benchmarks.timing import KERNELS, Job

RESULTS = ROOT / "benchmarks" / "results"
REFERENCE_NODES = 100  # of the peer's quadrature, where a float64 reference needs it
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "JAX_TRACEBACK_FILTERING": "off",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Side:
    """One of the programs that take turns."""

    name: str
    python: str
    module: str


@dataclass(frozen=True)
class Settings:
    """How long and how often, in seconds and turns."""

    rounds: int
    budget_s: float
    patience_s: float  # a side whose turn took longer than this is not given another
    timeout_s: float
    work: Path


class WorkerFailed(Exception):
    """A worker process failed; the message is the first line of its error."""


def main(argv: list[str] | None = None) -> int:
    """Run the cases asked for. Returns 0, 1 when a row has complaints, 2 for arguments that make no sense."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that a worker is ended too
    try:
        chosen = cases.select(args.cases, slow=not args.quick)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{case.name:36}{case.title}{' (slow)' if case.slow else ''}" for case in chosen))
        return 0
    ours = Side("ours", sys.executable, "benchmarks.worker_ours")
    peer, note = _peer(args.no_peer)
    out = args.out or (RESULTS if args.cases is None and not args.quick else BENCH / "results") / "compare"
    settings = Settings(
        1 if args.quick else args.rounds,
        0.5 if args.quick else args.budget,
        args.patience,
        args.timeout,
        BENCH / "work",
    )
    result = report.header(rounds=settings.rounds, note=note)
    sides = [ours] if peer is None else [ours, peer]
    for case in chosen:
        print(f"{case.name} ...", end=" ", file=sys.stderr, flush=True)
        row = measure(case, sides, settings)
        result["rows"].append(row)
        print(report.one_line(row), file=sys.stderr, flush=True)
        report.write(out, result)
    print(f"wrote {out}.json and {out}.md", file=sys.stderr)
    if out.resolve() == (RESULTS / "compare").resolve() and peer is not None:
        report.write_readme(ROOT / "README.md", result)
    return int(any(report.complaints(row) for row in result["rows"]))


def measure(case: Case, sides: list[Side], settings: Settings) -> dict[str, Any]:
    """One row: all rounds of all sides on one case, and what follows from them."""
    shutil.rmtree(settings.work, ignore_errors=True)
    settings.work.mkdir(parents=True)
    _write_inputs(case, settings.work)
    turns, failures = _take_turns(case, sides, settings)
    row: dict[str, Any] = {
        "case": case.name,
        "title": case.title,
        "target": case.target,
        "agreement": case.agreement,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": list(os.getloadavg()),
    }
    row["limit_s"] = min((min(turn["calls_s"]) for turn in turns["limit"]), default=None)
    for side in sides:
        failed = failures.get(side.name) or _reference(side, case, settings)
        row[side.name] = {"failed": failed} if failed else _summary(turns[side.name])
    _relate(row, settings.work)
    shutil.rmtree(settings.work, ignore_errors=True)
    return row


def _take_turns(
    case: Case, sides: list[Side], settings: Settings
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """All rounds: each side's answers, and the message of a side that failed (it gets no further turn)."""
    limit = Side("limit", sys.executable, "benchmarks.worker_limit")
    turns: dict[str, list[dict[str, Any]]] = {side.name: [] for side in [limit, *sides]}
    failures: dict[str, str] = {}
    for number in range(settings.rounds):
        for side in [limit, *(sides if number % 2 == 0 else sides[::-1])]:
            slow = any(turn["wall_s"] > settings.patience_s for turn in turns[side.name])
            if slow or side.name in failures:
                continue
            try:
                turns[side.name].append(_turn(side, case, settings))
            except WorkerFailed as failure:
                failures[side.name] = str(failure)
    return turns, failures


def _write_inputs(case: Case, work: Path) -> None:
    x1, x2 = cases.inputs(case)
    if x2 is None:
        np.savez(work / "inputs.npz", x1=x1)
    else:
        np.savez(work / "inputs.npz", x1=x1, x2=x2)


def _turn(side: Side, case: Case, settings: Settings) -> dict[str, Any]:
    """One float32 process of a side."""
    job = Job(
        case.name,
        str(settings.work / "inputs.npz"),
        str(settings.work / side.name),
        nodes=case.nodes,
        budget_s=settings.budget_s,
        save=side.name != "limit",
    )
    return _run(side, job, settings.timeout_s)


def _reference(side: Side, case: Case, settings: Settings) -> str | None:
    """The side's float64 kernel on the leading inputs, one call; an error message if it failed."""
    job = Job(
        case.name,
        str(settings.work / "inputs.npz"),
        str(settings.work / f"{side.name}64"),
        dtype="float64",
        rows=case.reference_rows,
        nodes=case.nodes and REFERENCE_NODES,
        budget_s=0.0,
    )
    try:
        _run(side, job, settings.timeout_s)
    except WorkerFailed as failure:
        return f"float64 reference: {failure}"
    return None


def _run(side: Side, job: Job, timeout_s: float) -> dict[str, Any]:
    """Run one worker process to its end and read its answer, with the wall time of the process added."""
    environment = {**os.environ, **ENVIRONMENT}
    if side.name == "peer":
        environment.pop("PYTHONPATH", None)  # packages of our interpreter are not for the peer's
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [side.python, "-m", side.module, job.dump()],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"took longer than {timeout_s:g} s") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if re.match(r"[A-Za-z_][\w.]*: ", line)]
        raise WorkerFailed(errors[-1] if errors else f"exit status {done.returncode}")
    answer: dict[str, Any] = json.loads(Path(f"{job.out}.json").read_text())
    return {**answer, "wall_s": time.perf_counter() - start}


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """A side's figures over its rounds: the median of the rounds' medians, and the extremes of all calls."""
    medians = [statistics.median(turn["calls_s"]) for turn in turns]
    calls = [seconds for turn in turns for seconds in turn["calls_s"]]
    compiles = [turn["compile_s"] for turn in turns if turn["compile_s"] is not None]
    return {
        "median_s": statistics.median(medians),
        "min_s": min(calls),
        "max_s": max(calls),
        "calls": len(calls),
        "rounds_s": medians,
        "compile_s": statistics.median(compiles) if compiles else None,
        "first_value_s": statistics.median(turn["first_value_s"] for turn in turns),
        "rss_peak_mb": max(turn["rss_peak_mb"] for turn in turns),
        "rss_base_mb": max(turn["rss_base_mb"] for turn in turns),
        "versions": turns[-1]["versions"],
    }


def _relate(row: dict[str, Any], work: Path) -> None:
    """Add what compares the sides: errors against both references, differences, ratio, fraction of limit."""
    present = [name for name in ("ours", "peer") if name in row and "failed" not in row[name]]
    for name in present:
        row[name]["error"] = {f"{other}64": _difference(work / name, work / f"{other}64") for other in present}
    if "ours" in present and row["limit_s"] is not None:
        row["fraction_of_limit"] = row["limit_s"] / row["ours"]["median_s"]
    if len(present) == 2:
        row["ratio"] = row["peer"]["median_s"] / row["ours"]["median_s"]
        row["difference"] = _difference(work / "ours", work / "peer")
        row["difference64"] = _difference(work / "ours64", work / "peer64")


def _difference(ours: Path, reference: Path) -> dict[str, float]:
    """Per kernel, the largest difference relative to the reference's largest entry, on their common block."""
    return {
        kernel: _relative(
            np.load(f"{ours}-{kernel}.npy", mmap_mode="r"),
            np.load(f"{reference}-{kernel}.npy", mmap_mode="r"),
        )
        for kernel in KERNELS
    }


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b| / max |b| over the leading block common to both, a few rows at a time.

    >>> _relative(np.array([[1.0, 2.5], [0.0, 9.0]]), np.array([[1.0, 2.0]]))
    0.25
    """
    rows, columns = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    apart = largest = 0.0
    for start in range(0, rows, 256):
        block = slice(start, min(start + 256, rows)), slice(columns)
        left, right = a[block].astype(np.float64), b[block].astype(np.float64)
        apart = np.maximum(apart, np.max(np.abs(left - right)))  # np.maximum keeps a NaN, max() may not
        largest = np.maximum(largest, np.max(np.abs(right)))
    return float(apart / largest)


def _peer(skip: bool) -> tuple[Side | None, str | None]:
    """The peer's side, or None and the reason."""
    if skip:
        return None, "The peer was left out (--no-peer)."
    try:
        return Side("peer", str(ensure_peer()), "benchmarks.worker_peer"), None
    except PeerUnavailable as error:
        print(f"the peer is not measured: {error}", file=sys.stderr)
        return None, f"The peer is not measured: {error}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", metavar="GLOBS", help="only cases whose name matches one of these (comma-separated)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side per case (default 3)")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of warm calls per turn (default 2)")
    parser.add_argument("--quick", action="store_true", help="one short round, without the slow cases")
    parser.add_argument("--no-peer", action="store_true", help="time tensorprog alone")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        help="a side whose turn took longer than this gets no further one in that case (default 60 s)",
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds after which a process is given up (default 900)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write OUT.json and OUT.md (default: benchmarks/results/compare for "
        "a full run, .bench/results/compare for --cases or --quick)",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


if __name__ == "__main__":
    sys.exit(main())
