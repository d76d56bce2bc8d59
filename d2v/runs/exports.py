"""Export folders: written to a temporary folder, swapped in as a whole, and checked by checksums when they are read.

``SHA256SUMS`` lists every file, in the format of ``sha256sum -c``. Its first line states the format of the export and
the number of files.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from d2v.bounds import read_text
from d2v.runs.archives import Damaged, Identity, identity
from d2v.runs.files import replace_text, settled, sync_folder, writing

log = logging.getLogger(__name__)

SUMS, CARD = "SHA256SUMS", "README.md"

_HEAD = re.compile(r"# d2v export, format=(\w+), (\d+) files")
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\0]+)")
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of linux/fs.h

_known: dict[Identity, str] = {}  # digests of files that this process has checked


@dataclass(frozen=True)
class Sums:
    """Content of ``SHA256SUMS``.

    Attributes:
        format: format of the export, as in ``d2v export format=...``.
        digests: SHA-256 by file name.
    """

    format: str
    digests: dict[str, str]


@contextmanager
def export_folder(folder: str | Path, format: str) -> Iterator[Path]:
    """Yield a folder for the files of an export; when the block ends, they replace an older export in ``folder``.

    Other files in ``folder`` stay. A kill leaves the old export or the new one. If the system cannot swap folders, or
    ``folder`` holds other files, files are replaced one by one, and the checksums reveal a kill in between.

    Args:
        folder: created if missing.
        format: format of the export.

    Raises:
        ValueError: ``folder`` is a file, or holds files that are not an export of this format.
        NotWritten: the disk is full or not writable; no partial file remains.
    """
    folder = Path(folder)
    old = _replaceable(folder, format)
    with writing("output", folder):
        place = folder.resolve()
        part = _make_part(place)
        try:
            yield part
            _write_sums(part, format)
            _publish(part, place, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_export(folder: Path, needed: Iterable[str] = ()) -> bool:
    """Compare the files of an export with its checksums; each process reads an unchanged file only once.

    Args:
        folder: folder of the export.
        needed: names that must be among the files.

    Returns:
        Whether the export has checksums.

    Raises:
        Damaged: a file is missing, changed or not listed; the message names it.
    """
    sums = read_sums(folder)
    if sums is None:
        return False
    for name in needed:
        if name not in sums.digests:
            raise Damaged(f"{folder / name} is not listed in {SUMS}: it belongs to another export")
    for name, digest in sums.digests.items():
        path = folder / name
        if name == CARD:
            continue  # the model card may be edited
        if not path.is_file():
            raise Damaged(f"{path} is missing: copy the export again, or write it again")
        if _digest(path) != digest:
            raise Damaged(
                f"{path} is not the file that was exported (its SHA-256 is another than in {SUMS}): copy the export "
                "again, or write it again"
            )
    return True


def read_sums(folder: Path) -> Sums | None:
    """Read ``SHA256SUMS``; None if there is none.

    Raises:
        Damaged: the file is truncated or otherwise changed.
    """
    path = folder / SUMS
    try:
        lines = read_text(path).splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from error
    head = _HEAD.fullmatch(lines[0]) if lines else None
    matches = [_LINE.fullmatch(line) for line in lines[1:]]
    digests = {match[2]: match[1] for match in matches if match}
    if head is None or None in matches or len(digests) != int(head[2]):
        raise Damaged(f"{path} is damaged: copy the export again, or write it again")
    return Sums(head[1], digests)


def _digest(path: Path) -> str:
    known = identity(path)
    if known not in _known:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not settled(known[1]):
            return digest
        _known[known] = digest
    return _known[known]


def _write_sums(part: Path, format: str) -> None:
    """Write ``SHA256SUMS``, after all files are on the disk."""
    names = sorted(path.name for path in part.iterdir())
    for name in names:
        with (part / name).open("rb+") as file:
            os.fsync(file.fileno())
    lines = [f"# d2v export, format={format}, {len(names)} files", *(f"{_digest(part / n)}  {n}" for n in names)]
    replace_text(part / SUMS, "\n".join(lines) + "\n")
    sync_folder(part)


def _replaceable(folder: Path, format: str) -> set[str]:
    """Return the names of an older export's files, which a new one may replace.

    Raises:
        ValueError: the folder holds something else.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"output={folder}: is a file; give a folder")
        return set()
    try:
        sums = read_sums(folder)
    except Damaged:
        sums = None
    if sums is not None and sums.format == format:
        return {SUMS, *sums.digests}
    if sums is not None:
        raise ValueError(f"output={folder}: holds an export of format={sums.format}: give another folder")
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if there:
        raise ValueError(
            f"output={folder}: holds files that are no export's ({', '.join(there[:3])}{', ...' * (len(there) > 3)}): "
            "give a new or empty folder"
        )
    return set()


def _make_part(place: Path) -> Path:
    """Create the folder to write to: beside ``place``, so that they can be swapped, or else in it."""
    name = f"{place.name}.{socket.gethostname()}"
    inside = place / f".{name}-{os.getpid()}.part"
    beside = place.with_name(inside.name)
    _remove_leftovers(place, name)
    if place.is_dir() and (place.is_mount() or place.parent.stat().st_dev != place.stat().st_dev):
        inside.mkdir()
        return inside
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside.mkdir()
    except PermissionError:
        if not place.is_dir():
            raise
        inside.mkdir()
        return inside
    return beside


def _remove_leftovers(place: Path, name: str) -> None:
    """Remove temporary folders of killed processes of this machine that exported to the same folder."""
    pattern = f".{glob.escape(name)}-*.part"
    for path in [*place.parent.glob(pattern), *place.glob(pattern)]:
        pid = path.stem.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            log.info("removing %s, left by a killed process", path)
            shutil.rmtree(path, ignore_errors=True)


def _publish(part: Path, place: Path, old: set[str]) -> None:
    if not place.exists():
        part.rename(place)
    else:
        others = {path.name for path in place.iterdir()} - old - {part.name}
        if others or part.parent == place or not _exchange(part, place):
            _replace_files(part, place, old)
    sync_folder(place)
    sync_folder(place.parent)


def _exchange(part: Path, place: Path) -> bool:
    """Swap two folders atomically; return False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    with suppress(OSError):
        shutil.copymode(place, part)
    done: int = rename(_HERE, os.fsencode(part), _HERE, os.fsencode(place), _EXCHANGE)
    return done == 0


def _replace_files(part: Path, place: Path, old: set[str]) -> None:
    """Replace files one by one, the checksums first, so that a reader in between finds that the others do not match."""
    names = sorted((path.name for path in part.iterdir()), key=lambda name: name != SUMS)
    for name in names:
        (part / name).replace(place / name)
    for name in old - set(names):
        (place / name).unlink(missing_ok=True)
