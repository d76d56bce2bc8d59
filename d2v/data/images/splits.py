"""Interpretation of a folder of images: which folders below it are splits, and which are classes.

The table of rules is in docs/data.md. Nothing is inferred without a note in the summary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d2v.data.contents import first_of
from d2v.data.files import TEST, TRAIN, VAL, Listing, holds_file, is_folder, printable
from d2v.data.images.decoding import image_endings
from d2v.data.images.sources import ImageFolder, list_images, require_directory


@dataclass(frozen=True)
class Splits:
    """Folders to train and to evaluate on.

    Attributes:
        train: to train on.
        val: to evaluate on, or None.
        apart: names of folders in ``train`` that are not trained on.
        train_notes: for the summary.
        val_notes: for the summary.
    """

    train: Path
    val: Path | None = None
    apart: tuple[str, ...] = ()
    train_notes: tuple[str, ...] = ()
    val_notes: tuple[str, ...] = ()


def read_splits(root: str, val_root: str | None) -> tuple[ImageFolder, ImageFolder | None]:
    """Images to train on, and labelled images to evaluate on where there are any.

    An image that is in both, by whatever path or link, is only evaluated on.

    Args:
        root: ``root``.
        val_root: ``val_root``.

    Raises:
        FileNotFoundError: a folder does not exist or holds no image.
        PermissionError: a folder cannot be read.
        ValueError: a folder is none; ``root`` holds splits, but none to train on; ``val_root`` holds all training
            images, has no classes or others than training.
    """
    splits = find_splits(require_directory(root, "root"))
    listing = list_images(splits.train, "root")
    for name in splits.apart:
        listing = listing.without_folder(name)
    notes = list(splits.train_notes)
    val_folder, val_key = (splits.val, "root") if val_root is None else (Path(val_root), "val_root")
    if val_folder is None:
        return ImageFolder(splits.train, listing=listing, notes=notes), None
    val_listing = list_images(val_folder, val_key)
    shared = listing.shared_with(val_listing)
    if len(shared) == len(listing.paths):
        raise ValueError(
            f"{val_key}={printable(val_folder)}: holds all images of root={printable(splits.train)} too; give "
            "training and validation folders of their own"
        )
    if shared:
        notes.append(f"{len(shared):,} images are both here and in {printable(val_folder)}: only evaluated on")
        listing = _without(listing, shared)
    train = ImageFolder(splits.train, listing=listing, notes=notes)
    val_notes = splits.val_notes if val_root is None else ()
    val = ImageFolder(val_folder, train.class_names, val_key, listing=val_listing, notes=val_notes)
    if val.class_names is None and val_root is not None:
        raise ValueError(
            f"val_root={printable(val_root)}: no class directories, but evaluation needs labels; set it to null"
        )
    if val.class_names is None:
        note = f"{printable(val_folder.name)}/ has no class folders: nothing to evaluate on"
        return ImageFolder(splits.train, listing=listing, notes=[*notes, note]), None
    return train, val


def find_splits(root: Path) -> Splits:
    """Tell splits from classes by the names of the folders directly below ``root``.

    Raises:
        FileNotFoundError: a split to be read holds no image.
        ValueError: there are only splits to evaluate on.
    """
    names = sorted(_folders(root))
    train, vals, tests = _first(names, TRAIN), _all(names, VAL), _all(names, TEST)
    splits = [*vals, *tests]
    others = [name for name in names if name != train and name not in splits and _holds_image(root / name)]
    if train is not None and splits:
        return _chosen(root, train, splits, others)
    if train is not None:
        classes = _class_folders(root / train)
        # Splits by other names hold the same classes; classes that have folders of their own do not.
        if len(classes) > 1 and (not others or any(_class_folders(root / name) & classes for name in others)):
            return Splits(root / train, train_notes=_not_read(root, train, others))
        return Splits(root, train_notes=(_is_a_class(root, train, others),) if others else ())
    if splits and not others:
        if len(splits) > 1:
            raise ValueError(
                f"root={printable(root)}: holds {_listed(splits)} and no train/; set root=FOLDER, the one to train on"
            )
        return Splits(root)
    return _beside_classes(root, splits, others)


def _chosen(root: Path, train: str, splits: list[str], others: list[str]) -> Splits:
    """Return the training split and the first of the evaluation splits."""
    val, *rest = splits
    notes = _not_read(root, train, others)
    return Splits(root / train, root / val, train_notes=notes, val_notes=tuple(_choice(val, rest)))


def _not_read(root: Path, train: str, others: list[str]) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        stray = [e.name for e in entries if e.name.lower().endswith(image_endings()) and not is_folder(e)]
    images = [f"{len(stray):,} images ({first_of(map(printable, sorted(stray)), 3)})"] if stray else []
    folders = [_listed(others)] if others else []
    return (f"not read, beside {train}/: {', '.join(folders + images)}",) if folders or images else ()


def _choice(val: str, rest: list[str]) -> Iterator[str]:
    if val.lower() in TEST:
        yield f"{val}/ is evaluated on, as there is no val/"
    if rest:
        yield f"left alone: {_listed(rest)}"


def _beside_classes(root: Path, splits: list[str], classes: list[str]) -> Splits:
    """A folder of classes; a validation split may lie among them, if it holds classes of the same names."""
    with_classes = [name for name in splits if _class_folders(root / name) & set(classes)]
    notes = [
        _is_a_class(root, name, classes) for name in splits if name not in with_classes and _holds_image(root / name)
    ]
    if not with_classes:
        return Splits(root, train_notes=tuple(notes))
    notes.append(f"{_listed(with_classes)} inside the root, beside its classes: not trained on")
    return Splits(
        root,
        root / with_classes[0],
        tuple(with_classes),
        tuple(notes),
        tuple(_choice(with_classes[0], with_classes[1:])),
    )


def _is_a_class(root: Path, name: str, others: list[str]) -> str:
    split = printable(root / name)
    return f"{name}/ is read as a class, like {_listed(others)} beside it; if it is a split, set root={split}"


def _without(listing: Listing, shared: set[int]) -> Listing:
    """Return a listing without some files and without folders that are then empty."""
    kept = listing.keep(i for i in range(len(listing.paths)) if i not in shared)
    gone = {listing.paths[i].split(os.sep, 1)[0] for i in shared} - {p.split(os.sep, 1)[0] for p in kept.paths}
    for name in gone:
        kept = kept.without_folder(name)
    return kept


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    return next(iter(_all(names, known)), None)


def _all(names: list[str], known: tuple[str, ...]) -> list[str]:
    """Those of the names that are known, in the order of the known ones."""
    return [name for wanted in known for name in names if name.lower() == wanted]


def _listed(names: list[str]) -> str:
    return first_of((f"{printable(name)}/" for name in names), 5)


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)]
    except OSError as error:
        raise PermissionError(f"root={printable(root)}: cannot be read ({error.strerror})") from error


def _class_folders(split: Path) -> set[str]:
    """Names of the folders below a split that hold images."""
    return {name for name in _folders(split) if _holds_image(split / name)}


def _holds_image(folder: Path) -> bool:
    return holds_file(folder, image_endings())
