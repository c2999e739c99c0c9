"""The result of a comparison as one JSON file and one Markdown table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT

Row = dict[str, Any]
SIDES = ("ours", "peer")
FLOAT32_BOUND = 1e-5  # what this project promises: float32 this close to float64

COLUMNS = (
    "case",
    "ours s",
    "peer s",
    "ratio",
    "target",
    "limit s",
    "of limit",
    "derive + compile s, ours / peer",
    "first value s, ours / peer",
    "peak RSS MB, ours / peer",
    "error of ours vs ours64 / peer64",
    "error of peer vs ours64 / peer64",
    "ours - peer",
    "ours64 - peer64",
)

LEGEND = """\
Seconds are medians of warm calls, float32, NNGP and NTK together; ratio = peer / ours. Limit: one GEMM of the
inputs plus reading its result once and writing two of its size. Errors and differences are the largest ones
relative to the largest entry, the worse of NNGP and NTK; ours64 and peer64 are both sides' float64 kernels on
the leading inputs. First value: from the network's function to the first kernel, all of it. Peak RSS includes the
imports ({base}). How it is measured: benchmarks/README.md."""


def header(*, rounds: int, note: str | None) -> dict[str, Any]:
    """A result without rows: when, where, with what."""
    numpy = importlib.metadata.version("numpy")
    return {**provenance(), "rounds": rounds, "numpy": numpy, "note": note, "rows": []}


def provenance() -> dict[str, Any]:
    """When and where something is measured, and the commit."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "commit": _commit(),
    }


def machine_line(result: dict[str, Any]) -> str:
    """The date and the machine of a result that has its provenance."""
    machine = result["machine"]
    return (
        f"{result['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB, "
        f"{machine['system']}"
    )


def write(out: Path, result: dict[str, Any]) -> None:
    """Write OUT.json and OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_name(out.name + ".md").write_text(markdown(result))


README_MARKS = "<!-- benchmark -->\n", "<!-- /benchmark -->\n"


def write_readme(path: Path, result: dict[str, Any]) -> None:
    """Put the short table between the marks of a README. Raises ValueError where it has none."""
    text = path.read_text()
    start, stop = (text.find(mark) for mark in README_MARKS)
    if not 0 <= start < stop:
        raise ValueError(f"{path} lacks the lines {README_MARKS[0]!r} and {README_MARKS[1]!r}, in this order")
    path.write_text(text[: start + len(README_MARKS[0])] + short_table(result) + text[stop:])


def short_table(result: dict[str, Any]) -> str:
    """What a newcomer wants to know of each case: seconds of both sides, their ratio, our error."""
    lines = [
        "| NNGP and NTK, float32, warm | tensorprog s | neural-tangents s | times as fast | error against float64 |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "ratio" in row:
            ours, peer = row["ours"], row["peer"]
            error = _number(worst(ours.get("error", {}).get("ours64")), ".0e")
            seconds = f"{_seconds(ours['median_s'])} | {_seconds(peer['median_s'])}"
            lines.append(f"| {row['title']} | {seconds} | {row['ratio']:.3g} | {error} |")
    return "\n".join([*lines, "", f"{machine_line(result)}; commit {result['commit']}."]) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """The table, with machine, versions, date and whatever went wrong."""
    rows: list[Row] = result["rows"]
    lines = [
        "# tensorprog and the peer, side by side",
        "",
        f"{machine_line(result)}; rounds: {result['rounds']}; commit {result['commit']}.",
        *(f"{who}: {versions}." for who, versions in _versions(rows).items()),
        "",
    ]
    if result["note"]:
        lines += [result["note"], ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    lines += ["", LEGEND.format(base=_base(rows)), *missed(rows)]
    wrong = [f"- {row['case']}: {complaint}" for row in rows for complaint in complaints(row)]
    return "\n".join([*lines, *(["", "**What went wrong**", "", *wrong] if wrong else [])]) + "\n"


def missed(rows: list[Row]) -> list[str]:
    """The targets that were not met, as lines of Markdown.

    >>> missed([{"title": "a net", "ratio": 8.0, "target": 9}])[-1]
    '- a net: 8 of 9.'
    """
    found = [f"- {row['title']}: {row['ratio']:.3g} of {row['target']:g}." for row in rows if _below(row)]
    slower = [row["title"] for row in rows if _compiles_slower(row)]
    if slower:
        found.append(f"- Derive + compile, which is to be no slower than the peer's: slower for {'; '.join(slower)}.")
    if not found:
        return []
    return ["", "**Targets not met** (what binds: [docs/speed.md](../../docs/speed.md#what-binds))", "", *found]


def _below(row: Row) -> bool:
    return bool(row.get("target")) and "ratio" in row and row["ratio"] < row["target"]


def _compiles_slower(row: Row) -> bool:
    ours, peer = (row.get(side, {}).get("compile_s") for side in SIDES)
    return ours is not None and peer is not None and ours > peer


def complaints(row: Row) -> list[str]:
    """What is wrong with a row: a side that failed, float32 off its bound, two sides not the same function.

    >>> complaints({"ours": {"failed": "out of memory"}})
    ['ours failed: out of memory']
    """
    failed = {side: row[side]["failed"] for side in SIDES if "failed" in row.get(side, {})}
    wrong = [f"{side} failed: {message}" for side, message in failed.items()]
    apart = worst(row.get("difference64"))
    if apart is not None and not apart <= row["agreement"]:
        wrong.append(f"the two float64 kernels differ by {apart:.1e}; expected at most {row['agreement']:.0e}")
    error = worst(row.get("ours", {}).get("error", {}).get("ours64"))
    if error is not None and not error <= FLOAT32_BOUND:
        wrong.append(f"ours in float32 is {error:.1e} off its float64; promised is {FLOAT32_BOUND:.0e}")
    return wrong


def one_line(row: Row) -> str:
    """A row for the terminal."""
    medians = {side: row[side].get("median_s") for side in SIDES if side in row}
    seconds = ", ".join(f"{side} {_seconds(median)} s" for side, median in medians.items())
    ratio = f", ratio {row['ratio']:.3g} (target {row['target'] or '-'})" if "ratio" in row else ""
    return seconds + ratio + "".join(f"; {complaint}" for complaint in complaints(row))


def worst(errors: dict[str, float] | None) -> float | None:
    """The larger of the two kernels' errors; NaN if one is NaN; None if there is none.

    >>> worst({"nngp": 1e-7, "ntk": 2e-7}), worst(None)
    (2e-07, None)
    """
    if errors is None:
        return None
    return next((e for e in errors.values() if e != e), max(errors.values()))


def _cells(row: Row) -> list[str]:
    ours, peer = row.get("ours", {}), row.get("peer", {})
    return [
        row["title"],
        _seconds(ours.get("median_s")),
        _seconds(peer.get("median_s")),
        f"**{row['ratio']:.3g}**" if "ratio" in row else "-",
        f"{row['target']:g}" if row["target"] else "-",
        _seconds(row["limit_s"]),
        f"{row['fraction_of_limit']:.0%}" if "fraction_of_limit" in row else "-",
        f"{_seconds(ours.get('compile_s'))} / {_seconds(peer.get('compile_s'))}",
        f"{_seconds(ours.get('first_value_s'))} / {_seconds(peer.get('first_value_s'))}",
        f"{_number(ours.get('rss_peak_mb'), '.0f')} / {_number(peer.get('rss_peak_mb'), '.0f')}",
        _errors(ours),
        _errors(peer),
        _number(worst(row.get("difference")), ".0e"),
        _number(worst(row.get("difference64")), ".0e"),
    ]


def _errors(side: dict[str, Any]) -> str:
    error = side.get("error", {})
    return " / ".join(_number(worst(error.get(f"{other}64")), ".0e") for other in SIDES)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _seconds(value: float | None) -> str:
    """Three digits, never in exponent form."""
    if value is None:
        return "-"
    return f"{value:.3g}" if 1e-4 <= value < 1000 else f"{value:.0f}" if value else "0"


def _versions(rows: list[Row]) -> dict[str, str]:
    """'ours' and 'peer': versions as text, from the first row that has them."""
    found: dict[str, str] = {}
    for row in rows:
        for side in SIDES:
            versions = row.get(side, {}).get("versions")
            if versions:
                found.setdefault(side, ", ".join(f"{name} {number}" for name, number in versions.items()))
    return found


def _base(rows: list[Row]) -> str:
    """Memory after imports, per side."""
    found = {side: [row[side]["rss_base_mb"] for row in rows if "rss_base_mb" in row.get(side, {})] for side in SIDES}
    return ", ".join(f"{side} {max(mb):.0f} MB" for side, mb in found.items() if mb) or "not measured"


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": _cpu(), "cores": cores, "memory_gb": memory, "system": system}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or "unknown CPU"
    first = [line.partition(":") for line in info.read_text().split("\n\n")[0].splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in first}
    model = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return model
    return f"{model} (family {fields['cpu family']}, model {fields['model']})"


def _commit() -> str:
    """The commit measured, with '+' where the working tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
