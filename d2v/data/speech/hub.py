"""Audio of Hugging Face data sets, map-style and streaming (extras ``d2v[hf]`` and ``d2v[speech]``).

Its own decoding is switched off: an undecodable row must be a ``BadSample`` and not the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents
from d2v.data.hub import features_of, find_column, load_hf
from d2v.data.speech.clips import AudioClips, Clip, decode_audio


class _Rows:
    """A data set's rows as files, by number as text: what ``AudioClips`` reads."""

    def __init__(self, data: Any, column: str) -> None:
        self._data = data
        self._column = column

    def __call__(self, name: str) -> str | bytes:
        return _content(self._data[int(name)][self._column])


def hf_clips(
    path: str,
    split: str,
    audio_column: str | None,
    text_column: str | None,
    sample_rate: int,
    min_samples: int,
    key: str = "data.split",
) -> AudioClips:
    """Every row's audio; lengths are read from the files' headers.

    Args:
        path: name on the Hub, or a local directory of parquet files, or what ``save_to_disk`` wrote.
        split: for example "train".
        audio_column: the only column of audio if None.
        text_column: of transcripts; None for none.
        sample_rate: Hz; other clips are resampled.
        min_samples: shorter clips are left out.
        key: the config key that ``split`` was read from, for messages.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: a package is not installed, or split or columns do not exist or are ambiguous, or no clip fits.
    """
    data = load_hf(path, split, streaming=False, key=key)
    column = _audio_column(path, data, audio_column)
    texts: list[str | None] = [None] * len(data)
    if text_column is not None:
        texts = data[find_column(path, data, "data.text_column", text_column, ("string", "large_string"))][:]
    clips = [Clip(str(number), None, text) for number, text in enumerate(texts)]
    return AudioClips(
        _Rows(_undecoded(data, column), column), clips, sample_rate, min_samples,
        key=f"data.path={path}", contents=Contents(f"{path}/{split}", "clips"),
    )  # fmt: skip


class HFAudioStream:
    """Rows of a Hugging Face data set in the order they are stored, without downloading all first.

    Args:
        path: name on the Hub, or a local directory of parquet files.
        split: for example "train".
        audio_column: the only column of audio if None.
        sample_rate: Hz; other clips are resampled.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: a package is not installed, or split or column do not exist or are ambiguous.
    """

    def __init__(self, path: str, split: str, audio_column: str | None, sample_rate: int) -> None:
        data = load_hf(path, split, streaming=True)
        self._column = _audio_column(path, data, audio_column)
        self._records = _undecoded(data, self._column)
        self._name = f"{path}/{split}"
        self.sample_rate = sample_rate

    def __iter__(self) -> Iterator[Any]:
        # Not iter(self._records): inside a data worker that would give this worker's share of the files only.
        for rows in self._records.iter(batch_size=1):
            yield rows[self._column][0]

    def decode(self, record: Any) -> np.ndarray:
        """(S,) float32 at ``sample_rate``. Raises BadSample."""
        return decode_audio(_content(record), self.sample_rate)

    def name(self, index: int) -> str:
        """The row's number."""
        return f"{self._name}[{index}]"


def _audio_column(path: str, data: Any, column: str | None) -> str:
    """The column to read, checked or found."""
    import datasets

    features = features_of(data)
    if column is not None:
        return find_column(path, data, "data.audio_column", column, ())
    audio = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    # Parquet files written without Hugging Face's metadata: a struct that holds the file.
    audio = audio or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    if len(audio) != 1:
        raise ValueError(
            f"data.audio_column=null: {path} has {len(audio)} columns of audio; "
            f"set data.audio_column to one of {', '.join(audio or features)}"
        )
    return audio[0]


def _undecoded(data: Any, column: str) -> Any:
    """Only the audio of a data set, as {"bytes": ..., "path": ...}."""
    import datasets

    return data.select_columns([column]).cast_column(column, datasets.Audio(decode=False))


def _content(record: dict[str, Any] | None) -> str | bytes:
    if record is None or (record["bytes"] is None and not record["path"]):
        raise BadSample("no audio in this row")
    content: str | bytes = record["path"] if record["bytes"] is None else record["bytes"]
    return content
