"""Lock of a run's folder, so that only one process writes to it: an OS-level lock, held while a process trains there.

The operating system releases it when the process ends, however it ends. In a job, only rank 0 takes it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from d2v.bounds import read_json
from d2v.errors import UserError
from d2v.runs.files import replace_json

log = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock.json"

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# Seconds to wait for a lock: data workers of a killed process end soon after it; if a machine is
# gone, the server of a shared file system releases the lock after its lease.
_PATIENCE, _PATIENCE_ELSEWHERE = 10.0, 120.0

_held: dict[Path, Any] = {}


class InUse(UserError):
    """Another process is writing to the folder."""


def is_first_process() -> bool:
    """Return whether this is rank 0 of its job, or a job of one process."""
    return all(os.environ.get(key, "0") == "0" for key in _RANKS)


def lock_folder(folder: str | Path) -> None:
    """Lock a folder until :func:`unlock_folders` or the end of the process; ranks other than 0 do nothing.

    A folder that cannot be locked (read-only, or on a file system without locks) is used with a warning.

    Args:
        folder: created if missing.

    Raises:
        InUse: another process holds the lock.
    """
    folder = Path(folder).resolve()
    if not is_first_process() or folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _held[folder] = _acquire(folder)
        replace_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): make sure that no other process writes to it", folder, error)


def _acquire(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    begun = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            holder = _read_holder(folder)
            waited = time.monotonic() - begun
            if waited >= _patience(holder):
                raise InUse(_explain(folder, holder)) from None
            if not waited > 1:
                log.warning("%s is locked by %s: waiting, it may have ended", folder, _name(holder))
            time.sleep(1)


def unlock_folders() -> None:
    """Release all locks of this process."""
    while _held:
        folder, lock = _held.popitem()
        with suppress(OSError):  # of a disk that is gone
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release(force=True)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder, without taking it."""
    try:
        import fcntl  # not on Windows, where False is returned

        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _read_holder(folder: Path) -> dict[str, Any]:
    try:
        holder = read_json(folder / HOLDER)
    except (OSError, ValueError):  # it is just being written
        return {}
    return holder if isinstance(holder, dict) else {}


def _patience(holder: dict[str, Any]) -> float:
    """Return the seconds to wait: 0 for a living process; on other machines that is unknown."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return _PATIENCE
    if holder.get("host") != socket.gethostname():
        return _PATIENCE_ELSEWHERE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return _PATIENCE
    except OSError:  # it lives, and belongs to another user
        return 0.0
    return 0.0


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"


def _explain(folder: Path, holder: dict[str, Any]) -> str:
    return (
        f"{folder}: {_name(holder)} is writing to this run; wait until it has ended, or stop it (it saves first), or "
        "start another run in a folder of its own: leave out resume=..., or give another hydra.run.dir=DIR"
    )
