"""Folders created for a command, removed again if the command fails before it writes to them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from d2v.runs.lock import HOLDER, LOCK

# Files that Hydra and the lock of a run write before the command begins.
_BOOKKEEPING = {".hydra", LOCK, HOLDER, "multirun.yaml"}

_made: dict[Path, list[Path]] = {}  # folder -> its parents that were missing, too, lowest first


def note_making(folder: str | Path) -> None:
    """Note that this process is about to create a folder; does nothing if it exists."""
    path = Path(folder).absolute()
    if not path.exists():
        _made.setdefault(path, [parent for parent in path.parents if not parent.exists()])


def forget_making(folder: str | Path) -> None:
    """Forget a folder, because another process has created it."""
    _made.pop(Path(folder).absolute(), None)


def note_given(arguments: list[str]) -> None:
    """Call :func:`note_making` for folders that Hydra creates by itself."""
    for word in arguments:
        key, _, value = word.lstrip("+").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and "${" not in value:
            note_making(value.strip("'\""))


@contextmanager
def tidying() -> Iterator[None]:
    """Remove unused new folders if the block fails."""
    _made.clear()
    try:
        yield
    except BaseException:
        for folder, parents in _made.items():
            with suppress(OSError):
                _remove_unused(folder)
                for parent in parents:
                    parent.rmdir()  # only if it is empty
        raise


def _remove_unused(folder: Path) -> None:
    """Remove a folder and, first, folders in it, if they hold only bookkeeping and logs."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in _BOOKKEEPING:
            _remove_unused(path)
    if all(path.name in _BOOKKEEPING or (path.suffix == ".log" and path.is_file()) for path in folder.iterdir()):
        shutil.rmtree(folder)
