"""Git LFS pointers: the few lines that stand in for a large file where ``git lfs`` has not fetched it."""

from __future__ import annotations

import os

_HEAD = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024  # bytes of a pointer, by its specification
IS_POINTER = "a Git LFS pointer, not the file itself: run `git lfs pull` in the repository that it came from"


def is_lfs_pointer(file: str | os.PathLike[str] | bytes) -> bool:
    """Return whether a file holds a Git LFS pointer instead of data.

    Args:
        file: a path, or a file's content. A path that cannot be read is no pointer.
    """
    if isinstance(file, bytes):
        return len(file) < _LONGEST and file.startswith(_HEAD)
    try:
        if os.path.getsize(file) >= _LONGEST:
            return False
        with open(file, "rb") as opened:
            return opened.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


def refuse_lfs_pointer(path: str | os.PathLike[str], key: str) -> None:
    """Raise ValueError if the file of a configuration key holds a Git LFS pointer.

    Args:
        path: of the file.
        key: the config key and its value, ``data.tokenizer=FILE``.
    """
    if is_lfs_pointer(path):
        raise ValueError(f"{key}: {path} is {IS_POINTER}")
