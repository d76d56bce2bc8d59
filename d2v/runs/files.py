"""Replacement of whole files: neither a reader nor a kill ever leaves half of one."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from omegaconf import OmegaConf

from d2v.bounds import read_json
from d2v.errors import UserError

log = logging.getLogger(__name__)

_TICK = 10**9  # nanoseconds: within one of its file system's clock a file may change and show the same time
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NotWritten(UserError):
    """A file or folder could not be written; the message names it, the reason and the fix."""


def part_of_file(path: Path) -> Path:
    """Return the temporary path of a file: hidden, in the same folder."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file; when the block ends without an error, the file replaces ``path``.

    The content is synced to the disk before the file is renamed. A link at ``path`` is replaced, not followed.

    Raises:
        OSError: the disk is full or not writable; no temporary file remains.
    """
    path = Path(path)
    part = part_of_file(path)
    try:
        part.unlink(missing_ok=True)  # left by a killed process
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # of a disk that is gone
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Yield the file of :func:`written_beside`, opened for writing."""
    with written_beside(path) as part, part.open("xb") as file:  # never through a link
        yield file


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, on file systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def settled(mtime_ns: int) -> bool:
    """Return whether a change of a file now would be visible in its time of change."""
    return time.time_ns() - mtime_ns > _TICK


def replace_bytes(path: str | Path, content: bytes) -> None:
    """Replace or create a file."""
    with replacing(path) as file:
        file.write(content)


def replace_text(path: str | Path, content: str) -> None:
    """Replace a file by UTF-8 text, newlines as given; file names that are not UTF-8 keep their bytes."""
    replace_bytes(path, content.encode("utf-8", "surrogateescape"))


def replace_json(path: str | Path, content: Any) -> None:
    """Replace a file by indented JSON.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    replace_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def replace_yaml(path: str | Path, content: Mapping[str, Any]) -> None:
    """Replace a file by YAML, keys in their order; it reads the same with OmegaConf and with PyYAML."""
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(content))))


def read_json_or_none(path: Path) -> Any:
    """Read a JSON file; None if it is missing, or, with a warning, damaged."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): ignored", path, error)
        return None


def refuse_foreign(path: str | Path, key: str, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse an output path at which the command would replace a foreign file.

    Args:
        path: path of the output.
        key: config key of the path, for the message.
        is_ours: returns whether the command may replace a file, by its content; ValueError or OSError mean no.
        what: description of the output, for the message.

    Raises:
        ValueError: there is a foreign file, or a folder or a device.
    """
    path = Path(path)
    if not path.exists():
        return
    ours = False
    if path.is_file():
        with suppress(ValueError, OSError):
            ours = is_ours(path)
    if not ours:
        raise ValueError(f"{key}={path}: is there already and is no {what}: choose another name, or move it away")


@contextmanager
def writing(key: str, path: str | Path) -> Iterator[None]:
    """Turn errors of the disk into one message that names the key and the path.

    Args:
        key: config key of the path, for the message.
        path: path of the file or folder being written.

    Raises:
        NotWritten: torch, safetensors, numpy or the system failed to write.
    """
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        advice = "make room there, or" if cause.errno in NO_ROOM else "check its permissions, or"
        raise NotWritten(
            f"{key}={path}: could not be written ({cause}); {advice} choose another by {key}=..."
        ) from error


def disk_error(error: BaseException | None) -> OSError | None:
    """Return the disk error that caused ``error``, or None; writers of weights wrap it in errors of their own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        code = _os_error_code(str(error)) if type(error).__name__ == "SafetensorError" else None
        if code is not None:
            return OSError(code, os.strerror(code))
        error = error.__cause__ or error.__context__
    return None


def _os_error_code(message: str) -> int | None:
    """Return the error number of a message of safetensors, which ends in ``(os error 28)``."""
    _, mark, rest = message.partition("(os error ")
    number = rest.partition(")")[0]
    return int(number) if mark and number.isdigit() else None
