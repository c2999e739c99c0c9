"""What the studies on real data share: where data lie, how long a step took, how results are kept."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import CASES, Case
from benchmarks.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "scikit-learn")


def find(folder: Path, names: Sequence[str], how: str) -> list[Path]:
    """The files of these names in a folder.

    Raises SystemExit with the names of those that are missing, and `how` to get them.
    """
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SystemExit(f"{folder} lacks {', '.join(missing)}\n{how}")
    return paths


@contextmanager
def timed(times: dict[str, float], what: str) -> Iterator[None]:
    """Add the seconds of a step to `times`, and print them."""
    start = time.perf_counter()
    yield
    times[what] = time.perf_counter() - start
    print(f"{times[what]:8.1f} s  {what}", flush=True)


def of_cases(
    out: Path,
    title: str,
    names: Sequence[str],
    prefixes: Sequence[str],
    measured: Callable[[Case], dict[str, Any]],
    row: Callable[[dict[str, Any]], str],
    head: Sequence[str],
) -> None:
    """Measure the named cases that begin with a prefix, a line each; or all of them, which replaces the results kept.

    head: what stands above the lines. Raises SystemExit where no case begins so.
    """
    chosen = [case for case in CASES if case.name in names and case.name.startswith(tuple(prefixes) or "")]
    if not chosen:
        raise SystemExit(f"no case begins with {' or '.join(prefixes)}; there are {', '.join(names)}")
    result = provenance()
    result["cases"] = []
    for case in chosen:
        result["cases"].append(measured(case))
        print(row(result["cases"][-1]), flush=True)
    if not prefixes:
        write(out, title, result, [*head, *map(row, result["cases"])])


def provenance() -> dict[str, Any]:
    """Machine, load, versions, date and commit."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**report.provenance(), "load": list(os.getloadavg()), "versions": versions}


def write(out: Path, title: str, result: dict[str, Any], body: Sequence[str]) -> None:
    """Write OUT.json, and OUT.md with a title, the provenance and the lines of `body`."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    head = [
        f"# {title}",
        "",
        f"{report.machine_line(result)}; load {result['load'][0]:.1f} at the start; commit {result['commit']}; {versions}.",
        "",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_name(out.name + ".md").write_text("\n".join([*head, *body]) + "\n")
    print(f"wrote {out}.json and {out}.md")
