"""The archive file of a kernel: a ZIP of a manifest and its members, sealed by a checksum of every byte.

The manifest (`manifest.json`) says what the file is and gives the size and SHA-256 of every member. The ZIP's
comment, the last bytes of the file, is the seal: the SHA-256 of everything before it. A file is read within bounds
and checked before anything in it is used; its contents are data (JSON, text, serialised StableHLO), and nothing is
unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorprog.errors import ArchiveError, explain

__all__ = ["FORMAT", "JOINT_FORMAT", "MAX_BYTES", "VERSION", "check_target", "read_archive", "write_archive"]

FORMAT = "tensorprog kernel"
JOINT_FORMAT = "tensorprog joint kernel"  # of several outputs
VERSION = 1
MAX_BYTES = 2**30  # of the file, and of all that is unpacked from it
_MANIFEST = "manifest.json"
_SEAL = "tensorprog seal sha256:"
_SEAL_BYTES = len(_SEAL) + 64
_ZIP_START = b"PK\x03\x04"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal contents make equal files


# ---------------------------------------------------------------------------------------------- writing


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path an archive can be written to, found out before any work goes into it. Raises ArchiveError."""
    try:
        target = Path(path)
    except TypeError:
        raise ArchiveError(f"export: path is a {type(path).__name__}, expected a file name such as 'net.tpk'") from None
    target = target.resolve()
    if target.is_dir():
        raise _unwritable(path, "it is a folder", "name a file in it, such as 'net.tpk'")
    if not target.parent.is_dir():
        raise _unwritable(
            path, f"there is no folder {target.parent}", "make the folder first, or name a file in another one"
        )
    if not os.access(target.parent, os.W_OK):
        raise _unwritable(
            path, f"the folder {target.parent} cannot be written to", "choose a folder that you may write to"
        )
    return target


def write_archive(path: str | os.PathLike[str], manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    """Write an archive in one step: the file is complete under its name, or what was there before is untouched.

    Format (unless the manifest says it), version and the members' sizes and checksums are added to `manifest`. Raises
    ArchiveError where it cannot be written.
    """
    target = check_target(path)
    data = _pack(manifest, members)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        try:
            with open(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb"
            ) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
    except OSError as error:
        raise _unwritable(path, str(error.strerror or error), "free some space, or choose another folder") from error
    _sync_folder(target.parent)


def _pack(manifest: dict[str, Any], members: dict[str, bytes]) -> bytes:
    contents = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in members.items()}
    head = {"format": FORMAT, "version": VERSION, **manifest, "members": contents}
    written = {_MANIFEST: json.dumps(head, indent=1, allow_nan=False).encode(), **members}
    if sum(map(len, written.values())) > MAX_BYTES:
        raise ArchiveError(f"export: the kernel takes more than the {MAX_BYTES} bytes that an archive may hold")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in written.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            file.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
        file.comment = bytes(_SEAL_BYTES)
    body = buffer.getvalue()[:-_SEAL_BYTES]
    return body + (_SEAL + _digest(body)).encode()


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power failure, where the system lets a folder be synchronised."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Any, reason: str, mend: str) -> ArchiveError:
    return ArchiveError(explain(f"export: {os.fspath(path)!r} cannot be written", reason=reason, mend=mend))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the members of an archive, every byte checked.

    Raises ArchiveError for a file that is missing, truncated, altered, foreign, too new or too large.
    """
    data = _read(path)
    _check_seal(path, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            names = file.namelist()
            if sum(entry.file_size for entry in file.infolist()) > MAX_BYTES:
                raise _refused(path, f"it unpacks to more than {MAX_BYTES} bytes")
            manifest = _manifest(path, _member(file, _MANIFEST, MAX_BYTES))
            listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["members"].items()}
            if sorted(names) != sorted([_MANIFEST, *listed]):
                raise _refused(path, "its members are not those that its manifest lists")
            members = {name: _member(file, name, size) for name, (size, _) in listed.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _refused(path, f"it cannot be unpacked ({error})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise _refused(path, f"its manifest is malformed ({type(error).__name__}: {error})") from error
    for name, (size, digest) in listed.items():
        if (len(members[name]), _digest(members[name])) != (size, digest):
            raise _refused(path, f"its member {name} was altered: the checksum differs")
    return manifest, members


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ArchiveError(
            explain(
                f"load: there is no file {os.fspath(path)!r}", reason="nothing has that name", mend="check the path"
            )
        ) from None
    except IsADirectoryError:
        raise _refused(path, "it is a folder") from None
    except TypeError:
        raise ArchiveError(f"load: path is a {type(path).__name__}, expected a file name such as 'net.tpk'") from None
    except OSError as error:
        raise _refused(path, str(error.strerror or error)) from error
    if len(data) > MAX_BYTES:
        raise _refused(path, f"it is larger than {MAX_BYTES} bytes")
    return data


def _check_seal(path: Any, data: bytes) -> None:
    body, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if data[: len(_ZIP_START)] != _ZIP_START:
        raise _refused(path, "it is empty" if not data else "it is another kind of file, or its beginning was altered")
    if not re.fullmatch(re.escape(_SEAL).encode() + b"[0-9a-f]{64}", seal):
        ours = _SEAL.split()[0].encode() in data[-2 * _SEAL_BYTES :]
        if ours or not zipfile.is_zipfile(io.BytesIO(data)):
            raise _refused(path, "its end is missing or altered: the file is incomplete or damaged")
        raise _refused(path, "it is a ZIP file of another kind")
    if seal.decode() != _SEAL + _digest(body):
        raise _refused(path, "it was altered: the checksum of its bytes differs from its seal")


def _manifest(path: Any, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except RecursionError:
        raise _refused(path, "its manifest is nested too deeply") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, JOINT_FORMAT):
        raise _refused(path, f"its manifest does not say {FORMAT!r}")
    version = manifest.get("version")
    if type(version) is not int or version > VERSION:
        raise ArchiveError(
            explain(
                f"load: {os.fspath(path)!r} has version {version!r} of the archive format, this tensorprog reads up to {VERSION}",
                reason="a newer tensorprog wrote it",
                mend="upgrade tensorprog, or export the kernel again with this version",
            )
        )
    return manifest


def _member(file: zipfile.ZipFile, name: str, size: int) -> bytes:
    """One member, of which no more than one byte too many is ever unpacked."""
    with file.open(name) as member:
        return member.read(size + 1)


def _refused(path: Any, reason: str) -> ArchiveError:
    return ArchiveError(
        explain(
            f"load: {os.fspath(path)!r} is not an intact archive of a kernel",
            reason=reason,
            mend="copy the file again, or make it anew with kernel.export(path)",
        )
    )
