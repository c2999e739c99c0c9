"""Write the lock files, one for each supported Python: every package of every extra, pinned.

    python requirements/lock.py              pin again, keeping the versions that still fit
    python requirements/lock.py --upgrade    pin again from nothing, taking the newest that fit
    python requirements/lock.py --check      fail when pyproject.toml asks for something else than was pinned

pip itself resolves, in a fresh environment of each interpreter, since markers are evaluated by the
interpreter that runs. Only names and versions are written: where a package came from is the business of the
machine that installs it. The standard library suffices to run this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
DIGEST = "# dependencies of pyproject.toml: sha256:"


def lock_path(version: str) -> Path:
    """The lock file of one Python, as ``requirements/lock-3.11.txt``."""
    return ROOT / "requirements" / f"lock-{version}.txt"


def project() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def digest() -> str:
    """A checksum of what the lock files answer to: the requirements of build, project and extras."""
    table = project()
    asked = [
        table["build-system"]["requires"],
        table["project"]["requires-python"],
        table["project"]["dependencies"],
        table["project"]["optional-dependencies"],
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def stale() -> list[str]:
    """The lock files that are missing, or were made from other requirements than pyproject.toml has now."""
    line = DIGEST + digest()
    return [
        path.name
        for path in map(lock_path, PYTHONS)
        if not path.exists() or line not in path.read_text(encoding="utf-8").splitlines()
    ]


def interpreter(version: str) -> str:
    """The full path of an interpreter of that version, from PATH (pyenv is told which is meant)."""
    command = f"python{version}"
    environment = {**os.environ, "PYENV_VERSION": version}
    ask = [command, "-c", "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"]
    try:
        answer = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"lock: {command} does not run; install it and put it on PATH") from error
    found, path = answer.stdout.splitlines()
    if found != version:
        raise SystemExit(f"lock: {command} is Python {found}, expected {version}")
    return path


def resolve(version: str, upgrade: bool) -> dict[str, str]:
    """Name and version of all that every extra needs on one Python, as pip resolves it there."""
    extras = ",".join(project()["project"]["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "env", "bin", "python")
        report = Path(folder, "report.json")
        subprocess.run([interpreter(version), "-m", "venv", str(python.parent.parent)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), f"{ROOT}[{extras}]"]
        if lock_path(version).exists() and not upgrade:
            command += ["--constraint", str(lock_path(version))]
        if subprocess.run(command).returncode:
            raise SystemExit(f"lock: pip found no solution for Python {version}; try --upgrade")
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = {item["metadata"]["name"]: item["metadata"]["version"] for item in installs}
    pins = {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in pins.items()}
    del pins["tensorprog"]
    return dict(sorted(pins.items()))


def render(version: str, pins: dict[str, str]) -> str:
    """The text of a lock file."""
    head = [
        f"# Every package that tensorprog and its extras need on Python {version}, pinned.",
        "# Written by `make lock`; not edited by hand.",
        DIGEST + digest(),
    ]
    return "\n".join(head + [f"{name}=={pin}" for name, pin in pins.items()]) + "\n"


def main() -> None:
    """Write all lock files, or check them."""
    parser = argparse.ArgumentParser(description="Write the lock files.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    parser.add_argument("--check", action="store_true", help="only say whether the lock files are up to date")
    options = parser.parse_args()
    if options.check:
        if old := stale():
            raise SystemExit(f"lock: {', '.join(old)} out of step with pyproject.toml; run `make lock`")
        return
    texts = {}
    for version in PYTHONS:
        texts[version] = render(version, resolve(version, options.upgrade))
        print(f"Python {version}: {texts[version].count('==')} packages", file=sys.stderr)
    for version, text in texts.items():  # all or none
        lock_path(version).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
