"""Image data sets by configuration: one factory for each kind, all of them making an ``ImageData``.

A factory checks everything it can, so that a wrong path, size or column fails before training starts. Its keywords are
the keys of ``conf/data/<factory>.yaml``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from d2v.data.datasets import Source
from d2v.data.hf_images import HFImages, HFImageStream
from d2v.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData
from d2v.data.image_sources import ImageFolder, SampleImages, require_directory
from d2v.data.streams import Stream


def samples(
    *,
    img_size: int = 28,
    patch_size: int = 4,
    in_chans: int = 1,
    mean: Sequence[float] = (0.2860,),
    std: Sequence[float] = (0.3530,),
    crop_scale: Sequence[float] = (0.4, 1.0),
    crop_pct: float = 1.0,
    hflip: float = 0.5,
    max_bad_fraction: float = 0.01,
) -> ImageData:
    """The Fashion-MNIST images that ship with the package: 8,000 to train on, 2,000 to evaluate.

    Args:
        img_size: as in ImageData, like all that follow; mean and std are those of the original's training images.

    Raises:
        ValueError: a value is out of its range.
    """
    train = SampleImages("train")
    return ImageData(
        train=train,
        probe_train=train,
        val=SampleImages("val"),
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        mean=mean,
        std=std,
        crop_scale=crop_scale,
        crop_pct=crop_pct,
        hflip=hflip,
        max_bad_fraction=max_bad_fraction,
    )


def image_folder(
    root: str,
    val_root: str | None = None,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_scale: Sequence[float] = (0.2, 1.0),
    crop_pct: float = 0.875,
    hflip: float = 0.5,
    max_bad_fraction: float = 0.01,
) -> ImageData:
    """Images in a folder, with class directories or without.

    Args:
        root: if it holds a directory ``train``, that is trained on, and ``val``, ``validation`` or ``test`` (the first
            that exists) evaluated on if it has class directories; otherwise all of it is trained on.
        val_root: class directories to evaluate on, instead of those below ``root``.
        img_size: as in ImageData, like all that follow.

    Raises:
        FileNotFoundError: a directory does not exist or holds no image.
        ValueError: a directory is none, validation has no classes or others than training, or a value is out of its
            range.
    """
    train_root, found_val_root = _splits(require_directory(root, "data.root"))
    train = ImageFolder(train_root)
    val = None
    if val_root is not None:
        val = ImageFolder(val_root, train.class_names, "data.val_root")
        if val.class_names is None:
            raise ValueError(
                f"data.val_root={val_root}: no class directories, but evaluation needs labels; set it to null"
            )
    elif found_val_root is not None:
        found = ImageFolder(found_val_root, train.class_names)
        val = None if found.class_names is None else found
    return ImageData(
        train=train,
        probe_train=None if train.class_names is None else train,
        val=val,
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        mean=mean,
        std=std,
        crop_scale=crop_scale,
        crop_pct=crop_pct,
        hflip=hflip,
        max_bad_fraction=max_bad_fraction,
    )


def _splits(root: Path) -> tuple[Path, Path | None]:
    """Directories to train and to evaluate on."""
    if not (root / "train").is_dir():
        return root, None
    return root / "train", next((root / name for name in ("val", "validation", "test") if (root / name).is_dir()), None)


def imagenet(
    root: str,
    *,
    img_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_scale: Sequence[float] = (0.2, 1.0),
    crop_pct: float = 0.875,
    hflip: float = 0.5,
    max_bad_fraction: float = 0.01,
) -> ImageData:
    """ImageNet as its training recipes lay it out: ``root/train/<class>/*`` and ``root/val/<class>/*``.

    Args:
        root: the directory that holds ``train`` and ``val``.
        img_size: as in ImageData, like all that follow.

    Raises:
        FileNotFoundError: a directory does not exist or holds no image.
        ValueError: a directory has no class directories, or a value is out of its range.
    """
    require_directory(root, "data.root")
    for split in ("train", "val"):
        if not os.path.isdir(os.path.join(os.path.expanduser(root), split)):
            raise FileNotFoundError(
                f"data.root={root}: holds no directory {split!r}; data=imagenet needs train and val"
            )
    data = image_folder(
        root,
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        mean=mean,
        std=std,
        crop_scale=crop_scale,
        crop_pct=crop_pct,
        hflip=hflip,
        max_bad_fraction=max_bad_fraction,
    )
    for split, source in (("train", data.probe_train), ("val", data.val)):
        if source is None or source.class_names is None:
            raise ValueError(
                f"data.root={root}: {split} has no class directories; sort its images into one directory a class, or "
                "use data=image_folder, which needs none"
            )
    return data


def hf_images(
    path: str,
    split: str = "train",
    val_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
    img_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_scale: Sequence[float] = (0.2, 1.0),
    crop_pct: float = 0.875,
    hflip: float = 0.5,
    max_bad_fraction: float = 0.01,
) -> ImageData:
    """A Hugging Face data set.

    Args:
        path: name on the Hub, or a local directory of parquet files, images, or what ``save_to_disk`` wrote.
        split: to train on.
        val_split: to evaluate on, or None; never streamed.
        image_column: found from the features if None.
        label_column: found from the features if None.
        streaming: read while training instead of downloading first; then there are no labelled training images.
        shuffle_buffer: rows that every worker holds, still encoded, to shuffle a stream. Files are read in their order:
            choose it well above the rows of a class if those are stored together.
        img_size: as in ImageData, like all that follow.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, split or columns do not exist or are ambiguous, or a value is out of
            its range.
    """
    train: Source | Stream
    probe_train: Source | None = None
    if streaming:
        train = HFImageStream(path, split, image_column)
    else:
        train = images = HFImages(path, split, image_column, label_column)
        probe_train = images if images.has_labels else None
    val = None if val_split is None else HFImages(path, val_split, image_column, label_column)
    if val is not None and not val.has_labels:
        raise ValueError(
            f"data.val_split={val_split}: {path} has no column of class labels, but evaluation needs labels; "
            "set data.label_column, or data.val_split=null"
        )
    return ImageData(
        train=train,
        probe_train=probe_train,
        val=val,
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        mean=mean,
        std=std,
        crop_scale=crop_scale,
        crop_pct=crop_pct,
        hflip=hflip,
        max_bad_fraction=max_bad_fraction,
        shuffle_buffer=shuffle_buffer,
    )
