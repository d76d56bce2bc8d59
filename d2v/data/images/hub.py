"""Images of Hugging Face data sets, map-style and streaming."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents, first_of
from d2v.data.fingerprint import file_mark
from d2v.data.hub import folder_notes, load_hf
from d2v.data.hub_files import IMAGES, HubStream
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
        class_names: the classes of the training set, for a validation set with the same meaning of labels.
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
        key: str = "split",
    ) -> None:
        data = load_hf(path, split, streaming=False, key=key)
        self.levels: Levels | None = None
        self._image_column = IMAGES.column(path, data, image_column)
        label_column = find_label_column(path, data.features, label_column)
        self._labels: np.ndarray | None = None
        self.class_names = None
        notes: tuple[str, ...] = ()
        if label_column is not None:
            self._labels, self.class_names = read_labels(data, label_column)
            if not self.class_names:
                raise ValueError(
                    f"label_column={label_column}: no row of {key}={split} of path={path} has a label; set "
                    "it to null or another column"
                )
            if class_names is not None:
                stated = hasattr(data.features[label_column], "names")
                where = f"{key}={split} of path={path}"
                self._labels, notes = match_classes(self._labels, self.class_names, class_names, stated, where)
                self.class_names = class_names
            if bare := int((self._labels < 0).sum()):
                notes = (*notes, f"{bare:,} rows without a label")
        elif candidates := plain_columns(data.features):
            notes = (f"no column of class labels; label_column could be {first_of(candidates)}",)
        self._records = IMAGES.undecoded(data, self._image_column)
        self._name = f"{path}/{split}"
        self.contents = _contents(path, split, notes, self.class_names is not None)

    def __len__(self) -> int:
        return len(self._records)

    def load(self, index: int) -> Image.Image:
        """The decoded image of a row. Raises BadSample."""
        return decode_image(self.encoded(index), self.levels)

    def encoded(self, index: int) -> str | bytes:
        """The image's file, or its path. Raises BadSample."""
        return IMAGES.file(self._records[index][self._image_column])

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


class HFImageStream(HubStream):
    """Images of a Hugging Face data set as a stream.

    Args:
        path: as in :class:`d2v.data.hub_files.HubStream`, like ``split`` and ``sharded``.
        split: for example "train".
        image_column: found from the features if None.
        bit_depth: bits that are used in images of more than 8; None to infer them from the first rows.
        sharded: whether every reader reads a share of its own.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: as HubStream, or ``bit_depth`` is out of range.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image_column: str | None = None,
        bit_depth: int | None = None,
        sharded: bool = False,
    ) -> None:
        super().__init__(path, split, IMAGES, image_column, sharded)
        first = islice(self, _FIRST_ROWS) if bit_depth is None else ()
        self.levels, notes = choose_levels(map(_deep, first), bit_depth)
        self.contents = _contents(path, split, notes, True)

    def decode(self, record: Any) -> Image.Image:
        """The decoded image of a record. Raises BadSample."""
        return decode_image(IMAGES.file(record), self.levels)


def _contents(path: str, split: str, notes: tuple[str, ...], labelled: bool) -> Contents:
    """With what Hugging Face leaves out of a local folder of images."""
    listing, more = folder_notes(path, image_endings(), labelled)
    return Contents(f"{path}/{split}", "images", {} if listing is None else listing.left_out, (*notes, *more))


def _deep(record: dict[str, Any] | None) -> np.ndarray | None:
    try:
        return deep_pixels(IMAGES.file(record))
    except BadSample:
        return None
