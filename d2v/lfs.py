"""Detection of Git LFS pointers, small text files in place of files that ``git lfs`` has not fetched."""

from __future__ import annotations

import os

_HEAD = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024  # bytes of a pointer, by its specification
IS_POINTER = "a Git LFS pointer, not the file itself: run `git lfs pull` in the repository that it came from"


def is_lfs_pointer(file: str | os.PathLike[str] | bytes) -> bool:
    """Return whether a file holds a Git LFS pointer instead of data.

    Args:
        file: a path, or the content of a file. A path that cannot be read counts as no pointer.
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
        path: path of the file.
        key: config key and value for the message, such as ``tokenizer=FILE``.
    """
    if is_lfs_pointer(path):
        raise ValueError(f"{key}: {path} is {IS_POINTER}")
