"""Files below a folder, in one order everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere.

    Bytes that are not UTF-8, which Python holds as lone surrogates, become ``\\xe9`` and the like.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def files_below(
    folder: str | os.PathLike[str], extensions: Iterable[str], ancestors: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Paths of the files with one of these endings, sorted by name at every level.

    Folders are searched recursively and symbolic links followed, though not in circles; hidden files are passed over.

    Args:
        folder: where to begin.
        extensions: in lower case; those of files may be in either.
        ancestors: device and inode of the folders that hold this one.
    """
    stat = os.stat(folder)
    inode = (stat.st_dev, stat.st_ino)
    if inode in ancestors:  # a symbolic link to a folder that holds it
        return
    endings = tuple(extensions)
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from files_below(entry.path, endings, ancestors | {inode})
        elif entry.name.lower().endswith(endings):
            yield entry.path
