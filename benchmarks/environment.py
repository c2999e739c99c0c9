"""The peer's own environment: a virtual environment in `.bench/peer` with the pins of peer_requirements.txt.

The peer needs an old JAX, so it can never share an interpreter with tensorprog. `ensure_peer()` makes the
environment once and reuses it while the pins stay the same; `PeerUnavailable` says what stood in the way.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
REQUIREMENTS = Path(__file__).with_name("peer_requirements.txt")
INSTALL_TIMEOUT_S = 1800
PROBE = "import neural_tangents, jax; jax.numpy.zeros(1)"


class PeerUnavailable(Exception):
    """The peer's environment could not be made; the message says at which step and why."""


def ensure_peer(folder: Path = BENCH / "peer") -> Path:
    """The Python of the peer's environment, which is made first if it is missing or has other pins.

    Raises PeerUnavailable when there is no Python 3.11, no network, or the peer does not import.
    """
    python = folder / "bin" / "python"
    stamp = folder / "pins.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text().strip() == wanted:
        return python
    print(
        f"setting up the peer's environment in {folder} (once; it takes some minutes)",
        file=sys.stderr,
        flush=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    _step("make the virtual environment", [_python311(), "-m", "venv", str(folder)])
    _step(
        "install the peer",
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(REQUIREMENTS),
        ],
    )
    _step("import the peer", [str(python), "-c", PROBE])
    stamp.write_text(wanted + "\n")
    return python


def _python311() -> str:
    """A Python 3.11: this one, or the first on PATH."""
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise PeerUnavailable(
            "the peer needs Python 3.11 and there is no `python3.11` on PATH: install one, "
            "or pass --no-peer to time tensorprog alone"
        )
    return found


def _step(what: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"could not {what}: {error}") from error
    if done.returncode != 0:
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-3:]
        raise PeerUnavailable(f"could not {what} (exit status {done.returncode}): " + " | ".join(last))
