"""Images of Hugging Face data sets, map-style and streaming.

Its own image decoding is switched off: an undecodable row must be a ``BadSample`` and not the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.fingerprint import file_mark
from d2v.data.hf import features_of, load_hf
from d2v.data.image_sources import decode_image


class HFImages:
    """Images of a Hugging Face data set.

    Args:
        path: name on the Hub, or a local directory of parquet files, images, or what ``save_to_disk`` wrote.
        split: for example "train".
        image_column: found from the features if None.
        label_column: the only column of class labels if None; no labels if there is no such column.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, or split or columns do not exist or are ambiguous.
    """

    class_names: tuple[str, ...] | None

    def __init__(
        self, path: str, split: str = "train", image_column: str | None = None, label_column: str | None = None
    ) -> None:
        data = load_hf(path, split, streaming=False)
        self._image_column = _image_column(path, data.features, image_column)
        label_column = _label_column(path, data.features, label_column)
        self._labels = None if label_column is None else np.asarray(data.with_format("numpy")[label_column][:])
        self.class_names = None if label_column is None else _class_names(data.features[label_column])
        self._records = _undecoded(data, self._image_column)
        self._name = f"{path}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def load(self, index: int) -> Image.Image:
        """The decoded image of a row. Raises BadSample."""
        return _decode_record(self._records[index][self._image_column])

    @property
    def has_labels(self) -> bool:
        """Whether the data set has a column of labels."""
        return self._labels is not None

    def label(self, index: int) -> int | None:
        """The row's class, or None if it has none (some test sets say -1)."""
        if self._labels is None or self._labels[index] < 0:
            return None
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the image's file."""
        return file_mark(_content(self._records[index][self._image_column]))


class HFImageStream:
    """Images of a Hugging Face data set, read in the order they are stored, without downloading all first.

    Args:
        path: name on the Hub, or a local directory of parquet files or images.
        split: for example "train".
        image_column: found from the features if None.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, or split or column do not exist or are ambiguous.
    """

    def __init__(self, path: str, split: str = "train", image_column: str | None = None) -> None:
        data = load_hf(path, split, streaming=True)
        features = features_of(data)
        self._image_column = _image_column(path, features, image_column)
        self._records = _undecoded(data, self._image_column)
        self._name = f"{path}/{split}"

    def __iter__(self) -> Iterator[Any]:
        # Not iter(self._records): inside a data worker that would give this worker's share of the files only.
        for rows in self._records.iter(batch_size=1):
            yield rows[self._image_column][0]

    def decode(self, record: Any) -> Image.Image:
        """The decoded image of a record. Raises BadSample."""
        return _decode_record(record)

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"


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


def _label_column(path: str, features: dict[str, Any], column: str | None) -> str | None:
    """The column of class labels, checked or found, or None."""
    import datasets

    if column is not None:
        feature = features.get(column)
        if not isinstance(feature, datasets.ClassLabel) and "int" not in str(getattr(feature, "dtype", "")):
            raise ValueError(
                f"data.label_column={column}: not a column of class labels or integers; "
                f"{path} has the columns {', '.join(features)}"
            )
        return column
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(labels) > 1:
        raise ValueError(
            f"data.label_column=null: {path} has {len(labels)} columns of class labels; "
            f"set data.label_column to one of {', '.join(labels)}"
        )
    return labels[0] if labels else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)  # plain integers have none
    return None if names is None else tuple(names)


def _undecoded(data: Any, image_column: str) -> Any:
    """Only the images of a data set, as {"bytes": ..., "path": ...}."""
    import datasets

    return data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def _decode_record(record: dict[str, Any] | None) -> Image.Image:
    return decode_image(_content(record))


def _content(record: dict[str, Any] | None) -> str | bytes:
    """An image's file, or where it lies. Raises BadSample."""
    if record is None or (record["bytes"] is None and not record["path"]):
        raise BadSample("no image in this row")
    content: str | bytes = record["path"] if record["bytes"] is None else record["bytes"]
    return content
