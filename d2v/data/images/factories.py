"""Factories of image data sets for configurations; each returns an ``ImageData``.

A factory checks everything it can, so that a wrong path, size or column fails before training starts. Its keywords are
the keys of ``conf/data/<factory>.yaml``.
Ranges stand in the annotations: ``build`` and the command line check them, a direct call does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from d2v.data.contents import Contents
from d2v.data.hub import check_other_split
from d2v.data.images.data import ImageData, ImageOptions
from d2v.data.images.hub import HFImages, HFImageStream
from d2v.data.images.inputs import IMAGENET_MEAN, IMAGENET_STD, choose_channels, default_crop_pct
from d2v.data.images.levels import Levels
from d2v.data.images.sources import SampleImages, require_directory, set_levels
from d2v.data.images.splits import read_splits
from d2v.data.shards import SHARDED, Streaming
from d2v.values import BitDepth, Name, PathStr, PositiveInt, buildable


@buildable
def samples(**options: Unpack[ImageOptions]) -> ImageData:
    """Build data from the shipped Fashion-MNIST images: 8,000 to train on, 2,000 to evaluate.

    Args:
        **options: as in :class:`ImageData`, with defaults of their own: grey images of 28 pixels, mean and std of the
            original's training images.

    Raises:
        ValueError: values do not fit each other.
    """
    defaults: ImageOptions = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "mean": (0.2860,),
        "std": (0.3530,),
        "crop_scale": (0.4, 1.0),
        "crop_pct": 1.0,
    }
    train = SampleImages("train")
    return _image_data(train, train, SampleImages("val"), defaults | options)


@buildable
def image_folder(
    root: PathStr,
    val_root: PathStr | None = None,
    *,
    bit_depth: BitDepth | None = None,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """Build data from a folder of images, with or without class directories.

    Args:
        root: holds images, class directories or splits, by the rules in docs/data.md.
        val_root: class directories to evaluate on, instead of those below ``root``.
        bit_depth: bits that are used in images of more than 8, from 8 to 16; None to infer them from a sample.
        **options: as in :class:`ImageData`; None for ``in_chans``, ``mean``, ``std`` and ``crop_pct`` chooses them by
            the images and their size (:mod:`d2v.data.images.inputs`).

    Raises:
        FileNotFoundError: a directory does not exist or holds no image.
        PermissionError: a directory cannot be read.
        ValueError: a directory is none, validation has no classes or others than training, all training images are
            validation images, or values do not fit each other.
    """
    train, val = read_splits(root, val_root)
    set_levels(train, val, bit_depth)
    return _image_data(train, None if train.class_names is None else train, val, options)


@buildable
def imagenet(
    root: PathStr,
    *,
    bit_depth: BitDepth | None = None,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """Build data from ImageNet in the usual layout: ``root/train/<class>/*`` and ``root/val/<class>/*``.

    Args:
        root: the directory that holds ``train`` and ``val``.
        bit_depth: as in :func:`image_folder`.
        **options: as in :class:`ImageData`, RGB with ImageNet's mean and std by default.

    Raises:
        FileNotFoundError: a directory does not exist or holds no image.
        ValueError: a directory has no class directories, or values do not fit each other.
    """
    defaults: ImageOptions = {"in_chans": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    folder = require_directory(root, "root")
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"root={root}: holds no directory {split!r}; data=imagenet needs train and val")
    data = image_folder(root, bit_depth=bit_depth, **(defaults | options))
    for split, source in (("train", data.probe_train), ("val", data.val)):
        if source is None or source.class_names is None:
            raise ValueError(
                f"root={root}: {split} has no class directories; sort its images into one directory a class, or "
                "use data=image_folder, which needs none"
            )
    return data


class HFImageOptions(ImageOptions, total=False):
    """Options of images that may be a stream."""

    shuffle_buffer: PositiveInt


@buildable
def hf_images(
    path: Name,
    split: Name = "train",
    val_split: Name | None = None,
    image_column: Name | None = None,
    label_column: Name | None = None,
    *,
    streaming: Streaming = False,
    bit_depth: BitDepth | None = None,
    **options: Unpack[HFImageOptions],
) -> ImageData:
    """Build data from a Hugging Face data set of images.

    Args:
        path: name on the Hub, or a local directory of parquet files, images, or what ``save_to_disk`` wrote.
        split: to train on.
        val_split: to evaluate on, or None; never streamed.
        image_column: found from the features if None.
        label_column: found from the features if None.
        streaming: read while training instead of downloading first; then there are no labelled training images.
            "sharded" lets every reader read a share of its own (docs/data.md).
        bit_depth: as in :func:`image_folder`.
        **options: as in :func:`image_folder`; a stream is RGB unless ``in_chans`` says otherwise. Its files are read
            in their order: choose ``shuffle_buffer`` well above the rows of a class if those are stored together.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, split or columns do not exist or are ambiguous, or a value is out of
            its range.
    """
    train: HFImages | HFImageStream
    levels: Levels | None
    probe_train: HFImages | None = None
    if streaming:
        train = HFImageStream(path, split, image_column, bit_depth, streaming == SHARDED)
        levels = train.levels
    else:
        train = images = HFImages(path, split, image_column, label_column)
        set_levels(images, None, bit_depth)
        levels = images.levels
        probe_train = images if images.has_labels else None
    val = None
    if val_split is not None:
        check_other_split(split, val_split)
        classes = None if probe_train is None else probe_train.class_names
        val = HFImages(path, val_split, image_column, label_column, classes, "val_split")
        val.levels = levels
    if val is not None and not val.has_labels:
        raise ValueError(
            f"val_split={val_split}: {path} has no column of class labels, but evaluation needs labels; "
            "set label_column, or val_split=null"
        )
    return _image_data(train, probe_train, val, options)


def _image_data(train: Any, probe_train: Any, val: Any, options: ImageOptions) -> ImageData:
    """Choose what the options leave open, with a note where the images were measured."""
    chosen = choose_channels(train, options.get("in_chans"), options.get("mean"), options.get("std"))
    if chosen.notes:
        contents = getattr(train, "contents", Contents())
        train.contents = replace(contents, notes=(*contents.notes, *chosen.notes))
    crop_pct = options.get("crop_pct")
    others: dict[str, Any] = {key: value for key, value in options.items() if key not in ImageData.found_keys}
    return ImageData(
        train=train,
        probe_train=probe_train,
        val=val,
        in_chans=chosen.in_chans,
        mean=chosen.mean,
        std=chosen.std,
        crop_pct=default_crop_pct(options.get("img_size", ImageData.img_size)) if crop_pct is None else crop_pct,
        **others,
    )
