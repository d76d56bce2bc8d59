"""Images of Hugging Face data sets, map-style and streaming.

Its own image decoding is switched off: an undecodable row must be a ``BadSample`` and not the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents, first_of
from d2v.data.fingerprint import file_mark
from d2v.data.hub import features_of, folder_notes, load_hf
from d2v.data.hub_labels import find_label_column, match_classes, plain_columns, read_labels
from d2v.data.images.decoding import decode_image, deep_pixels, image_endings
from d2v.data.images.levels import Levels, choose_levels

_FIRST_ROWS = 16  # of a stream, looked at for their bit depth


class HFImages:
    """Images of a Hugging Face data set.

    Args:
        path: name on the Hub, or a local directory of parquet files, images, or what ``save_to_disk`` wrote.
        split: for example "train".
        image_column: found from the features if None.
        label_column: the only column of class labels if None; no labels if there is no such column.
        class_names: the classes of the training set, for a validation set whose labels must mean the same.
        key: the config key that ``split`` was read from, for messages.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, split or columns do not exist or are ambiguous, or the classes are
            others than the training set's.
    """

    class_names: tuple[str, ...] | None

    def __init__(
        self,
        path: str,
        split: str = "train",
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: tuple[str, ...] | None = None,
        key: str = "data.split",
    ) -> None:
        data = load_hf(path, split, streaming=False, key=key)
        self.levels: Levels | None = None
        self._image_column = _image_column(path, data.features, image_column)
        label_column = find_label_column(path, data.features, label_column)
        self._labels: np.ndarray | None = None
        self.class_names = None
        notes: tuple[str, ...] = ()
        if label_column is not None:
            self._labels, self.class_names = read_labels(data, label_column)
            if not self.class_names:
                raise ValueError(
                    f"data.label_column={label_column}: no row of {key}={split} of data.path={path} has a label; set "
                    "it to null or another column"
                )
            if class_names is not None:
                stated = hasattr(data.features[label_column], "names")
                where = f"{key}={split} of data.path={path}"
                self._labels, notes = match_classes(self._labels, self.class_names, class_names, stated, where)
                self.class_names = class_names
            if bare := int((self._labels < 0).sum()):
                notes = (*notes, f"{bare:,} rows without a label")
        elif candidates := plain_columns(data.features):
            notes = (f"no column of class labels; data.label_column could be {first_of(candidates)}",)
        self._records = _undecoded(data, self._image_column)
        self._name = f"{path}/{split}"
        self.contents = _contents(path, split, notes, self.class_names is not None)

    def __len__(self) -> int:
        return len(self._records)

    def load(self, index: int) -> Image.Image:
        """The decoded image of a row. Raises BadSample."""
        return decode_image(self.encoded(index), self.levels)

    def encoded(self, index: int) -> str | bytes:
        """The image's file, or its path. Raises BadSample."""
        return _content(self._records[index][self._image_column])

    @property
    def has_labels(self) -> bool:
        """Return whether the data set has a column of labels."""
        return self._labels is not None

    def label(self, index: int) -> int | None:
        """The row's class, or None if it has none."""
        if self._labels is None or self._labels[index] < 0:
            return None
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the image's file."""
        return file_mark(self.encoded(index))


class HFImageStream:
    """Images of a Hugging Face data set, read in the order they are stored, without downloading all first.

    Args:
        path: name on the Hub, or a local directory of parquet files or images.
        split: for example "train".
        image_column: found from the features if None.
        bit_depth: bits that are used in images of more than 8; None to infer them from the first rows.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, split or column do not exist or are ambiguous, or ``bit_depth`` is
            out of range.
    """

    def __init__(
        self, path: str, split: str = "train", image_column: str | None = None, bit_depth: int | None = None
    ) -> None:
        data = load_hf(path, split, streaming=True)
        features = features_of(data)
        self._image_column = _image_column(path, features, image_column)
        self._records = _undecoded(data, self._image_column)
        self._name = f"{path}/{split}"
        first = islice(self, _FIRST_ROWS) if bit_depth is None else ()
        self.levels, notes = choose_levels(map(_deep, first), bit_depth)
        self.contents = _contents(path, split, notes, True)

    def __iter__(self) -> Iterator[Any]:
        # Not iter(self._records): inside a data worker that would give this worker's share of the files only.
        for rows in self._records.iter(batch_size=1):
            yield rows[self._image_column][0]

    def decode(self, record: Any) -> Image.Image:
        """The decoded image of a record. Raises BadSample."""
        return decode_image(_content(record), self.levels)

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"


def _contents(path: str, split: str, notes: tuple[str, ...], labelled: bool) -> Contents:
    """With what Hugging Face leaves out of a local folder of images."""
    listing, more = folder_notes(path, image_endings(), labelled)
    return Contents(f"{path}/{split}", "images", {} if listing is None else listing.left_out, (*notes, *more))


def _image_column(path: str, features: dict[str, Any], column: str | None) -> str:
    """The column to read, checked or found."""
    import datasets

    if column is not None:
        if column not in features:
            raise ValueError(f"data.image_column={column}: {path} has the columns {', '.join(features)}")
        return column
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # Parquet files written without Hugging Face's metadata: a struct that holds the file.
    images = images or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    if len(images) != 1:
        raise ValueError(
            f"data.image_column=null: {path} has {len(images)} columns of images; "
            f"set data.image_column to one of {', '.join(images or features)}"
        )
    return images[0]


def _undecoded(data: Any, image_column: str) -> Any:
    """Only the images of a data set, as {"bytes": ..., "path": ...}."""
    import datasets

    return data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def _deep(record: dict[str, Any] | None) -> np.ndarray | None:
    try:
        return deep_pixels(_content(record))
    except BadSample:
        return None


def _content(record: dict[str, Any] | None) -> str | bytes:
    """An image's file, or where it lies. Raises BadSample."""
    if record is None or (record["bytes"] is None and not record["path"]):
        raise BadSample("no image in this row")
    content: str | bytes = record["path"] if record["bytes"] is None else record["bytes"]
    return content
