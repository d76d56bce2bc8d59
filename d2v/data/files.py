"""Listing of files below a folder, in the same order on every system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from d2v.data.contents import NO_ENDING

# Names of splits, in lower case; of several, the first that is there.
TRAIN = ("train", "training")
VAL = ("val", "validation", "valid", "dev")
TEST = ("test", "testing")
NOT_READ = "lost+found"  # of file systems, at the top of a disk; only root may read it


def home_path(path: str | os.PathLike[str], key: str) -> Path:
    """Expand ``~`` in a path to the user's home folder.

    Args:
        path: path as given.
        key: config key of the path, for messages.

    Raises:
        ValueError: the path has a ``~``, but the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{key}={path}: this user has no home folder for ~; give the whole path") from error


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that can be printed anywhere.

    Bytes that are not UTF-8, which Python holds as lone surrogates, become ``\\xe9`` and the like.
    """
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass
class Listing:
    """Files with given endings below a folder.

    Attributes:
        root: the folder.
        paths: paths of the files relative to ``root``, sorted by name at every level.
        ids: device and inode of every file, as one number; for a link, those of its target.
        folders: names of the folders directly below ``root``.
        left_out: numbers of other entries, by kind: their ending, or "hidden".
        broken: links to nowhere or to themselves, with other endings.
        unreadable: folders that cannot be read, as "path: reason".
    """

    root: Path
    paths: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def refuse_unreadable(self, key: str) -> None:
        """Raise PermissionError, with all unreadable folders, because an unknown number of files would be missing."""
        if self.unreadable:
            raise PermissionError(
                f"{key}: {len(self.unreadable)} folders cannot be read: {', '.join(self.unreadable[:10])}; make them "
                f"readable, or move them out of {printable(self.root)}"
            )

    def keep(self, kept: Iterable[int]) -> Listing:
        """Return the listing of the files with these indices."""
        kept = list(kept)
        return replace(self, paths=[self.paths[i] for i in kept], ids=[self.ids[i] for i in kept])

    def without_folder(self, name: str) -> Listing:
        """Return the listing without the files in a folder directly below the root."""
        kept = self.keep(i for i, path in enumerate(self.paths) if not path.startswith(name + os.sep))
        return replace(kept, folders=self.folders - {name})

    def shared_with(self, other: Listing) -> set[int]:
        """Return the indices of files that ``other`` also holds, by any names and links."""
        theirs = dict(zip(other.ids, other.paths, strict=True))
        return {
            i
            for i, (path, identity) in enumerate(zip(self.paths, self.ids, strict=True))
            if identity and identity in theirs and _same(self.root / path, other.root / theirs[identity])
        }


def splits_read(listing: Listing) -> tuple[str, ...]:
    """Return a note for the summary if a whole folder is read that has a subfolder named as an evaluation split."""
    names = sorted({path.split(os.sep, 1)[0] for path in listing.paths})
    named = [name for name in names if name.split(".", 1)[0].lower() in (*VAL, *TEST)]
    if not named:
        return ()
    shown = ", ".join(printable(name) for name in named[:5])
    return (f"read as all the others: {shown}; if that is to be held out, give its neighbour by root=FOLDER",)


def list_files(folder: str | os.PathLike[str], extensions: Iterable[str]) -> Listing:
    """List files with one of these endings, and count the others.

    Folders are searched recursively and symbolic links followed, though not in circles; hidden files and folders are
    left out. No file is opened.

    Args:
        folder: folder to list.
        extensions: endings in lower case; those of files may be in upper case or followed by blanks.

    Raises:
        OSError: the folder itself cannot be read.
    """
    listing = Listing(Path(folder))
    for _ in _walk(listing, tuple(extensions)):
        pass
    return listing


def holds_file(folder: str | os.PathLike[str], extensions: Iterable[str]) -> bool:
    """Return whether a folder holds a file with one of these endings at any depth, or has an unreadable part."""
    listing = Listing(Path(folder))
    try:
        return next(_walk(listing, tuple(extensions)), None) is not None or bool(listing.unreadable)
    except OSError:
        return True


def _walk(listing: Listing, endings: tuple[str, ...]) -> Iterator[str]:
    """Fill a listing, and yield every file as it is found."""
    # A folder's entries, its path below the root, the folders that hold it, its device: recursion would be too deep for
    # some trees.
    stack = [_enter(os.fspath(listing.root), "", frozenset())]
    while stack:
        entries, below, ancestors, device = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        path = below + entry.name
        if entry.name.startswith("."):
            listing.left_out["hidden"] += 1
        elif is_folder(entry):
            if not below:
                listing.folders.add(entry.name)
            try:
                stack.append(_enter(entry.path, path + os.sep, ancestors))
            except _Circle:
                listing.left_out["links to a folder above"] += 1
            except OSError as error:
                if path == NOT_READ:
                    listing.folders.discard(path)
                    listing.left_out[path] += 1
                else:
                    listing.unreadable.append(f"{printable(entry.path)} ({error.strerror})")
        elif _is_special(entry):
            listing.left_out["pipes and devices"] += 1
        elif entry.name.strip().lower().endswith(endings):
            listing.paths.append(path)
            listing.ids.append(_identity(entry, device))
            yield path
        elif entry.is_symlink() and not os.path.exists(entry.path):
            listing.broken.append(printable(path))
        else:
            listing.left_out[os.path.splitext(printable(entry.name).strip().lower())[1] or NO_ENDING] += 1


def files_below(folder: str | os.PathLike[str], extensions: Iterable[str]) -> Iterator[str]:
    """Paths of the files with one of these endings: see :func:`list_files`.

    Raises:
        OSError: the folder, or one below it, cannot be read.
    """
    listing = list_files(folder, extensions)
    listing.refuse_unreadable(printable(folder))
    for path in listing.paths:
        yield os.path.join(folder, path)


class _Circle(Exception):
    """A symbolic link leads to a folder that contains it."""


_Level = tuple[Iterator["os.DirEntry[str]"], str, frozenset[tuple[int, int]], int]


def _enter(folder: str, below: str, ancestors: frozenset[tuple[int, int]]) -> _Level:
    stat = os.stat(folder)
    inode = (stat.st_dev, stat.st_ino)
    if inode in ancestors:
        raise _Circle
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    return iter(entries), below, ancestors | {inode}, stat.st_dev


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is, or links to, a pipe, socket or device, where reading may never end."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def _identity(entry: os.DirEntry[str], device: int) -> int:
    """Return device and inode as one number, without a system call for every file; 0 if unknown."""
    if not entry.is_symlink():
        return device << 64 | entry.inode()
    try:
        stat = entry.stat()
    except OSError:
        return 0
    return stat.st_dev << 64 | stat.st_ino


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
