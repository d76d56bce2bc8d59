"""Durations and sampling rates of clips, for ``d2v check``."""

from __future__ import annotations

import numpy as np

from d2v.data.contents import first_of, in_words
from d2v.data.measures import Measures, spread
from d2v.data.speech.clips import AudioClips

_LENGTH_ERROR = 0.01  # share that a clip may be longer or shorter than was listed


class ClipMeasures(Measures[np.ndarray]):
    """Measurements of clips.

    Args:
        clips: with those that listing has found to be unreadable.
    """

    def __init__(self, clips: AudioClips) -> None:
        super().__init__(clips, clips.bad)
        self._clips = clips
        self._listed = clips.lengths
        self._seconds: list[float] = []
        self._other_lengths: list[str] = []

    def add(self, index: int, sample: np.ndarray) -> None:
        """Note the duration, and whether it is the one that was listed."""
        self._seconds.append(len(sample) / self._clips.sample_rate)
        if abs(len(sample) - self._listed[index]) > _LENGTH_ERROR * len(sample):
            self._other_lengths.append(self._clips.name(index))

    def sizes(self) -> list[str]:
        """Durations, clips of other lengths than were listed, sampling rates of the files."""
        rate, hours = self._clips.sample_rate, sum(self._seconds) / 3600
        lines = [f"durations {spread(self._seconds)} s, {hours:.2f} h in all, read at {rate:,} Hz"]
        if self._other_lengths:
            named = first_of(self._other_lengths, 3)
            lines.append(f"not as long as listed: {len(self._other_lengths):,} clips ({named})")
        if rates := self._clips.rates():
            counts = {f"at {hertz:,} Hz": count for hertz, count in rates.items()}
            lines.append(f"rates of the files: {in_words(counts)}")
        return lines
