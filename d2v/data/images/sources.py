"""Sources of images: the shipped samples, and folders.

A source returns decoded images as stored, and raises ``BadSample`` for files that cannot be decoded.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents, first_of, in_words
from d2v.data.files import TEST, TRAIN, VAL, Listing, home_path, list_files, printable
from d2v.data.fingerprint import file_mark
from d2v.data.images.decoding import decode_image, deep_pixels, image_endings, to_channels
from d2v.data.images.levels import Levels, choose_levels, evenly_spaced

__all__ = [
    "ImageFolder",
    "SampleImages",
    "decode_image",
    "list_images",
    "require_directory",
    "set_levels",
    "to_channels",
]


# Names such as train2017, val_256 and test-images, which name a split and something else.
_LIKE_A_SPLIT = re.compile(rf"(?:{'|'.join((*TRAIN, *VAL, *TEST, 'eval'))})(?![a-z])", re.IGNORECASE)


@cache
def _read_idx(name: str) -> np.ndarray:
    """The uint8 array in a gzipped idx file that ships with the package."""
    with (resources.files("d2v.data.samples") / name).open("rb") as file:
        content = gzip.decompress(file.read())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", count=ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


SamplesSplit = Literal["train", "val", "all"]


class SampleImages:
    """The 10,000 images of Fashion-MNIST that ship with the package: 28x28, grey, ten classes.

    Args:
        split: "train" is the first 8,000, "val" the other 2,000, "all" both.
    """

    class_names: tuple[str, ...] | None = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def __init__(self, split: SamplesSplit = "all") -> None:
        parts = {"train": slice(0, 8000), "val": slice(8000, None), "all": slice(None)}
        if split not in parts:
            raise ValueError(f"split={split!r}: choose one of {', '.join(parts)}")
        part = parts[split]
        self._images = _read_idx("fashion_mnist_images.idx3.gz")[part]
        self._labels = _read_idx("fashion_mnist_labels.idx1.gz")[part]
        self._first = part.start or 0

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        """A 28x28 image of mode "L"."""
        return Image.fromarray(self._images[index])

    def label(self, index: int) -> int | None:
        """0 to 9."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The image's number in the file."""
        return f"fashion_mnist[{self._first + index}]"


class ImageFolder:
    """Image files below a directory, in the order of their names.

    In ImageNet's layout every directory directly below the root is a class. A folder with fewer than two directories
    that hold images has no labels. Files beside class directories are left out; where they are more than a quarter of
    the files in them, the directories are no classes.
    Directories are searched recursively and symbolic links followed; hidden files are left out.

    Args:
        root: the directory.
        class_names: the classes of the training set, for a validation set with the same meaning of labels.
        key: the config key that ``root`` was read from, for messages.
        listing: of the directory; None to list it.
        notes: decisions about it, for the summary.

    Raises:
        FileNotFoundError: no such directory, or no image in it.
        PermissionError: a directory in it cannot be read.
        ValueError: ``root`` is a file, or it has a class that ``class_names`` lacks.
    """

    class_names: tuple[str, ...] | None

    def __init__(
        self,
        root: str | os.PathLike[str],
        class_names: tuple[str, ...] | None = None,
        key: str = "root",
        *,
        listing: Listing | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._root = require_directory(root, key)
        self.levels: Levels | None = None
        listing = list_images(root, key) if listing is None else listing
        folders, beside = _classes_in(listing)
        min_classes = 1 if class_names is not None else 2
        labelled = len(folders) >= min_classes and 4 * len(beside) <= len(listing.paths) - len(beside)
        notes = [*notes, *_notes(listing, folders, beside, labelled)]
        left_out = dict(listing.left_out)
        if labelled and beside:
            left_out["beside the class folders"] = len(beside)
            listing = listing.keep(i for i in range(len(listing.paths)) if i not in beside)
        self.contents = Contents(printable(root), "images", left_out, tuple(notes))
        # One array instead of a list of str: workers would copy a list's pages, by touching reference counts.
        self._paths = np.array([os.fsencode(path) for path in listing.paths])
        self.class_names = (class_names or tuple(folders)) if labelled else None
        self._labels: np.ndarray | None = None
        if self.class_names is not None:
            label_of = {name: label for label, name in enumerate(self.class_names)}
            if unknown := [name for name in folders if name not in label_of]:
                raise ValueError(
                    f"{key}={printable(root)}: class directories {unknown[:5]} are not in the training set, which has "
                    f"{first_of(self.class_names, 10)}; give both sets the same class directories"
                )
            self._labels = np.array([label_of[printable(path.split(os.sep, 1)[0])] for path in listing.paths])

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> Image.Image:
        """The decoded file. Raises BadSample."""
        return decode_image(self.encoded(index), self.levels)

    def encoded(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self._root, os.fsdecode(self._paths[index]))

    def label(self, index: int) -> int | None:
        """The number of the class directory, or None in a flat folder."""
        return None if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """The file's path relative to the root."""
        return printable(os.fsdecode(self._paths[index]))

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the file."""
        return file_mark(self.encoded(index))


def list_images(root: str | os.PathLike[str], key: str) -> Listing:
    """The image files below a directory.

    Args:
        root: the directory.
        key: the argument that it was read from, for messages.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: a directory cannot be read.
    """
    try:
        listing = list_files(require_directory(root, key), image_endings())
    except PermissionError as error:
        raise PermissionError(f"{key}={printable(root)}: {error.strerror}; make the folder readable") from error
    listing.refuse_unreadable(f"{key}={printable(root)}")
    if not listing.paths:
        there = f"; left out: {in_words(listing.left_out)}" if listing.left_out else ""
        raise FileNotFoundError(
            f"{key}={printable(root)}: no image file below this directory ({', '.join(image_endings())}){there}; "
            f"set {key}=FOLDER, a folder of images"
        )
    return listing


def set_levels(train: Any, val: Any, bit_depth: int | None) -> None:
    """Give sources one range for images of more than 8 bits, and ``train`` a note where it was inferred.

    Args:
        train: source to sample images from; it has ``encoded``, ``levels`` and ``contents``.
        val: the same, or None.
        bit_depth: bits that are used, from 8 to 16; None to infer them.

    Raises:
        ValueError: ``bit_depth`` is out of range.
    """
    levels, notes = choose_levels((_deep(train, i) for i in evenly_spaced(len(train))), bit_depth)
    train.levels, train.contents = levels, replace(train.contents, notes=(*train.contents.notes, *notes))
    if val is not None:
        val.levels = levels


def _deep(source: Any, index: int) -> np.ndarray | None:
    try:
        return deep_pixels(source.encoded(index))
    except BadSample:  # a row without an image
        return None


def _classes_in(listing: Listing) -> tuple[list[str], set[int]]:
    """Names of the directories that hold images, sorted, and numbers of the files beside them."""
    first = [path.split(os.sep, 1)[0] if os.sep in path else None for path in listing.paths]
    folders = sorted({printable(name) for name in first if name is not None})
    return folders, {i for i, name in enumerate(first) if name is None}


def _notes(listing: Listing, folders: list[str], beside: set[int], labelled: bool) -> Iterator[str]:
    """Return notes on anything unusual in a folder."""
    names = first_of((printable(listing.paths[i]) for i in sorted(beside)), 3)
    if labelled and beside:
        yield f"beside the class folders: {names}"
    elif not labelled and len(folders) > 1:
        yield f"no classes: {len(beside):,} files lie beside the folders {first_of(folders)}: {names}"
    elif not labelled and folders and not beside:
        yield f"no classes: all images are in one folder; root=.../{folders[0]} for what is in that"
    if labelled and (empty := sorted(set(map(printable, listing.folders)) - set(folders))):
        yield f"no image in the folders {first_of(empty)}"
    if labelled:
        yield from _doubtful_classes(folders)
    if twice := len(listing.ids) - len(set(listing.ids)) - max(0, listing.ids.count(0) - 1):
        yield f"{twice:,} images are here twice or more, by links"
    if listing.broken:
        yield f"broken links: {first_of(listing.broken)}"


def _doubtful_classes(folders: Sequence[str]) -> Iterator[str]:
    """Return notes on classes that may be the same class, or no classes."""
    alike: dict[str, list[str]] = {}
    for name in folders:
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            yield f"the classes {first_of(group)} differ only in blanks or case"
    splits = [name for name in folders if _LIKE_A_SPLIT.match(name)]
    if len(splits) > 1:
        yield f"{first_of(splits)} are read as classes; if they are splits, set root=... and val_root=... to them"


def require_directory(root: str | os.PathLike[str], key: str) -> Path:
    """``root`` as a path, after checking that it is a directory; errors name the argument."""
    path = home_path(root, key)
    if not path.exists():
        raise FileNotFoundError(f"{key}={printable(root)}: no such directory; set {key}=FOLDER, a folder of images")
    if not path.is_dir():
        raise ValueError(f"{key}={printable(root)}: not a directory; set {key}=FOLDER, the one that holds the images")
    return path
