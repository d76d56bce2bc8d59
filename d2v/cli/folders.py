"""Folders made for a command, taken away again if it failed before it wrote anything there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from d2v.runs.lock import HOLDER, LOCK

# Files that Hydra and the lock of a run write before the command begins.
_BOOKKEEPING = {".hydra", LOCK, HOLDER, "multirun.yaml"}

_made: dict[Path, list[Path]] = {}  # folder -> those above it that were missing, too, lowest first


def note_making(folder: str | Path) -> None:
    """Remember that this process is about to make a folder; nothing if it is there already."""
    path = Path(folder).absolute()
    if not path.exists():
        _made.setdefault(path, [parent for parent in path.parents if not parent.exists()])


def forget_making(folder: str | Path) -> None:
    """Another process was faster: the folder is its."""
    _made.pop(Path(folder).absolute(), None)


def note_given(arguments: list[str]) -> None:
    """:func:`note_making` for folders that Hydra makes without asking d2v."""
    for word in arguments:
        key, _, value = word.lstrip("+").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and "${" not in value:
            note_making(value.strip("'\""))


@contextmanager
def tidying() -> Iterator[None]:
    """Take away what was made and not used, if the block fails."""
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
    """Remove a folder, of which only bookkeeping and logs remain once this was done to the folders in it."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in _BOOKKEEPING:
            _remove_unused(path)
    if all(path.name in _BOOKKEEPING or (path.suffix == ".log" and path.is_file()) for path in folder.iterdir()):
        shutil.rmtree(folder)
