"""Audio of Hugging Face data sets, map-style and streaming (extras ``d2v[hf]`` and ``d2v[speech]``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v.data.contents import Contents
from d2v.data.hub import find_column, load_hf
from d2v.data.hub_files import AUDIO, HubStream
from d2v.data.speech.clips import AudioClips, Clip, decode_audio


class _Rows:
    """A data set's rows as files, by number as text: what ``AudioClips`` reads."""

    def __init__(self, data: Any, column: str) -> None:
        self._data = data
        self._column = column

    def __call__(self, name: str) -> str | bytes:
        return AUDIO.file(self._data[int(name)][self._column])


def hf_clips(
    path: str,
    split: str,
    audio_column: str | None,
    text_column: str | None,
    sample_rate: int,
    min_samples: int,
    key: str = "split",
) -> AudioClips:
    """Every row's audio; lengths are read from the files' headers.

    Args:
        path: name on the Hub, or a local directory of parquet files, or what ``save_to_disk`` wrote.
        split: for example "train".
        audio_column: the only column of audio if None.
        text_column: of transcripts; None for none.
        sample_rate: Hz; other clips are resampled.
        min_samples: shorter clips are left out.
        key: the argument that ``split`` was read from, for messages.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: a package is not installed, or split or columns do not exist or are ambiguous, or no clip fits.
    """
    data = load_hf(path, split, streaming=False, key=key)
    column = AUDIO.column(path, data, audio_column)
    texts: list[str | None] = [None] * len(data)
    if text_column is not None:
        texts = data[find_column(path, data, "text_column", text_column, ("string", "large_string"))][:]
    clips = [Clip(str(number), None, text) for number, text in enumerate(texts)]
    return AudioClips(
        _Rows(AUDIO.undecoded(data, column), column), clips, sample_rate, min_samples,
        key=f"path={path}", contents=Contents(f"{path}/{split}", "clips"),
    )  # fmt: skip


class HFAudioStream(HubStream):
    """Audio of a Hugging Face data set as a stream.

    Args:
        path: as in :class:`d2v.data.hub_files.HubStream`, like ``split`` and ``sharded``.
        split: for example "train".
        audio_column: the only column of audio if None.
        sample_rate: Hz; other clips are resampled.
        sharded: whether every reader reads a share of its own.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: a package is not installed, or split or column do not exist or are ambiguous.
    """

    def __init__(
        self, path: str, split: str, audio_column: str | None, sample_rate: int, sharded: bool = False
    ) -> None:
        super().__init__(path, split, AUDIO, audio_column, sharded)
        self.sample_rate = sample_rate

    def decode(self, record: Any) -> np.ndarray:
        """Return (S,) float32 at ``sample_rate``. Raises BadSample."""
        return decode_audio(AUDIO.file(record), self.sample_rate)
