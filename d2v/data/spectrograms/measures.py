"""Mean and standard deviation of log energies, for ``d2v check``."""

from __future__ import annotations

import math

import numpy as np

from d2v.data.spectrograms.batches import SpectrogramView
from d2v.data.speech.clips import AudioClips
from d2v.data.speech.measures import ClipMeasures


class SpectrogramMeasures(ClipMeasures):
    """Measurements of recordings, their spectrograms included.

    Args:
        clips: the recordings.
        view: as in training; frames that it would pad are not measured.
    """

    def __init__(self, clips: AudioClips, view: SpectrogramView) -> None:
        super().__init__(clips)
        self._view = view
        self._sums = np.zeros(3)  # of ones, values, squares

    def add(self, index: int, sample: np.ndarray) -> None:
        """Note duration and log energies. Raises BadSample if there is no whole window."""
        energies = self._view.energies(sample).double()
        super().add(index, sample)
        self._sums += energies.numel(), float(energies.sum()), float(energies.square().sum())

    def suggestions(self) -> list[str]:
        """``mean`` and ``std``."""
        count, total, squares = self._sums.tolist()
        mean = total / count
        return [f"suggested: mean={mean:.3f} std={math.sqrt(max(0.0, squares / count - mean**2)):.3f}"]
