"""Images and audio in a column of a Hugging Face data set: choice of the column, rows as files, streams of them.

Decoding by ``datasets`` is switched off, so that an undecodable row is a ``BadSample`` and does not end the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from d2v.data.bad_samples import BadSample
from d2v.data.hub import features_of, find_column, load_hf


@dataclass(frozen=True)
class Media:
    """Content of a column.

    Attributes:
        feature: class of ``datasets`` for such a column.
        noun: noun in messages: "image" or "audio".
        plural: its plural.
    """

    feature: Literal["Image", "Audio"]
    noun: str
    plural: str

    @property
    def key(self) -> str:
        """The argument that chooses the column."""
        return f"{self.noun}_column"

    def column(self, path: str, data: Any, column: str | None) -> str:
        """The column to read, checked, or the only one of such content if None.

        Raises:
            ValueError: there is no such column, or not exactly one.
        """
        import datasets

        if column is not None:
            return find_column(path, data, self.key, column, ())
        features = features_of(data)
        kind = getattr(datasets, self.feature)
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        # Parquet files written without Hugging Face's metadata: a struct that holds the file.
        fitting = fitting or [name for name, f in features.items() if isinstance(f, dict) and "bytes" in f]
        if len(fitting) != 1:
            raise ValueError(
                f"{self.key}=null: {path} has {len(fitting)} columns of {self.plural}; "
                f"set {self.key} to one of {', '.join(fitting or features)}"
            )
        return fitting[0]

    def undecoded(self, data: Any, column: str) -> Any:
        """Only this column of a data set, as {"bytes": ..., "path": ...}."""
        import datasets

        feature = getattr(datasets, self.feature)(decode=False)
        if self.feature == "Audio" and isinstance(data, datasets.IterableDataset):
            # A plain struct: of files in tars, datasets' Audio asks for torchcodec even where nothing is decoded.
            feature = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        return data.select_columns([column]).cast_column(column, feature)

    def file(self, record: Mapping[str, Any] | None) -> str | bytes:
        """A row's file, or its path. Raises BadSample."""
        if record is None or (record["bytes"] is None and not record["path"]):
            raise BadSample(f"no {self.noun} in this row")
        content: str | bytes = record["path"] if record["bytes"] is None else record["bytes"]
        return content


IMAGES = Media("Image", "image", "images")
AUDIO = Media("Audio", "audio", "audio")


class Rows:
    """Rows of a streamed column: all of them, or a reader's share.

    Args:
        data: a ``datasets.IterableDataset``.
        column: of it.
    """

    def __init__(self, data: Any, column: str) -> None:
        self._data = data
        self._column = column

    def __iter__(self) -> Iterator[Any]:
        # Not iter(self._data): inside a data worker that would give this worker's share of the files only.
        for rows in self._data.iter(batch_size=1):
            yield rows[self._column][0]

    def share(self, reader: int, num_readers: int) -> Rows:
        """The rows of one of ``num_readers``: of shards of its own, or, of fewer shards, every so many rows."""
        from datasets.distributed import split_dataset_by_node

        if self._data.num_shards >= num_readers:
            return Rows(self._data.shard(num_readers, reader, contiguous=False), self._column)
        return Rows(split_dataset_by_node(self._data, reader, num_readers), self._column)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last row read, as plain containers."""
        state: dict[str, Any] = self._data.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after that row."""
        self._data.load_state_dict(state)


class HubStream(ABC):
    """Base class of streams of files: rows in the order they are stored, without downloading all first.

    Images and speech define ``decode``, because a row is decoded into what the modality reads.

    Args:
        path: name on the Hub, or a local directory of parquet, arrow or webdataset files.
        split: for example "train".
        media: content of the column.
        column: the only one of such content if None.
        sharded: whether every reader reads a share of its own (:mod:`d2v.data.shards`).

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, or split or column do not exist or are ambiguous.
    """

    def __init__(self, path: str, split: str, media: Media, column: str | None, sharded: bool = False) -> None:
        data = load_hf(path, split, streaming=True)
        column = media.column(path, data, column)
        self.media = media
        self.sharded = sharded
        self._rows = Rows(media.undecoded(data, column), column)
        self._name = f"{path}/{split}"

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def share(self, reader: int, num_readers: int) -> Rows:
        """One reader's share of the rows."""
        return self._rows.share(reader, num_readers)

    @abstractmethod
    def decode(self, record: Any) -> Any:
        """The decoded sample of a row. Raises BadSample."""

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"
