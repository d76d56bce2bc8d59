"""Export folders: written beside, swapped in as a whole, and compared with their checksums when they are read.

``SHA256SUMS`` lists every file, in the format of ``sha256sum -c``. Its first line says of which format the export is,
and of how many files.
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

_known: dict[Identity, str] = {}  # digests of files that this process has read


@dataclass(frozen=True)
class Sums:
    """Content of ``SHA256SUMS``.

    Attributes:
        format: of the export, as in ``d2v export format=...``.
        digests: by file name.
    """

    format: str
    digests: dict[str, str]


@contextmanager
def export_folder(folder: str | Path, format: str, key: str = "output") -> Iterator[Path]:
    """Give a folder to write the files of an export into; when the block ends, they take the place of an older export.

    Other files in ``folder`` stay as they are. A process that is killed leaves the old export, or the new one; where
    the system cannot swap folders, or the folder holds other files, files are replaced one by one, and a kill in
    between is noticed by the checksums.

    Args:
        folder: made if need be.
        format: of the export.
        key: of the configuration, by which the folder was given.

    Raises:
        ValueError: ``folder`` is a file, or holds files that are no export of this format.
        NotWritten: the disk is full, or may not be written to; no part is left behind.
    """
    folder = Path(folder)
    old = _replaceable(folder, format, key)
    with writing(key, folder):
        place = folder.resolve()
        part = _make_part(place)
        try:
            yield part
            _write_sums(part, format)
            _publish(part, place, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_export(folder: Path, needed: Iterable[str] = ()) -> bool:
    """Compare the files of an export with its checksums; a file that has not changed is read once in a process.

    Args:
        folder: of the export.
        needed: names that must be among the files.

    Returns:
        Whether there are checksums.

    Raises:
        Damaged: naming the file that is missing, changed or not listed.
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
            continue  # for people, who may have improved it
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
        Damaged: it is cut short or otherwise changed.
    """
    path = folder / SUMS
    try:
        lines = read_text(path).splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from error
    head = _HEAD.fullmatch(lines[0]) if lines else None
    found = [_LINE.fullmatch(line) for line in lines[1:]]
    digests = {match[2]: match[1] for match in found if match}
    if head is None or None in found or len(digests) != int(head[2]):
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
    """List the files once they are on the disk."""
    names = sorted(path.name for path in part.iterdir())
    for name in names:
        with (part / name).open("rb+") as file:
            os.fsync(file.fileno())
    lines = [f"# d2v export, format={format}, {len(names)} files", *(f"{_digest(part / n)}  {n}" for n in names)]
    replace_text(part / SUMS, "\n".join(lines) + "\n")
    sync_folder(part)


def _replaceable(folder: Path, format: str, key: str) -> set[str]:
    """The names of an older export's files, which a new one may replace.

    Raises:
        ValueError: there is something else.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{key}={folder}: is a file; give a folder")
        return set()
    try:
        sums = read_sums(folder)
    except Damaged:
        sums = None
    if sums is not None and sums.format == format:
        return {SUMS, *sums.digests}
    if sums is not None:
        raise ValueError(f"{key}={folder}: holds an export of format={sums.format}: give another folder")
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if there:
        raise ValueError(
            f"{key}={folder}: holds files that are no export's ({', '.join(there[:3])}{', ...' * (len(there) > 3)}): "
            "give a new or empty folder"
        )
    return set()


def _make_part(place: Path) -> Path:
    """A folder to write into: beside ``place``, so that they can be swapped, or else in it."""
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
    """Remove leftovers of processes of this machine that were killed while they exported to the same folder."""
    pattern = f".{glob.escape(name)}-*.part"
    for path in [*place.parent.glob(pattern), *place.glob(pattern)]:
        pid = path.stem.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            log.info("removing %s, which a process left that was killed", path)
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
    """Swap two folders at once; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    with suppress(OSError):
        shutil.copymode(place, part)
    done: int = rename(_HERE, os.fsencode(part), _HERE, os.fsencode(place), _EXCHANGE)
    return done == 0


def _replace_files(part: Path, place: Path, old: set[str]) -> None:
    """File by file, the checksums first: whoever reads in between finds that the others are not theirs."""
    names = sorted((path.name for path in part.iterdir()), key=lambda name: name != SUMS)
    for name in names:
        (part / name).replace(place / name)
    for name in old - set(names):
        (place / name).unlink(missing_ok=True)
