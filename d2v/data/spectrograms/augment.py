"""Augmentation of spectrograms in fine-tuning: SpecAugment's masks (arXiv:1904.08779) and rolled waveforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from d2v.data.spectrograms.batches import SpectrogramView
from d2v.values import Fraction, buildable


@buildable
@dataclass(frozen=True, kw_only=True)
class SoundAugment:
    """Augmentation of recordings; the defaults are those of EAT on AudioSet (arXiv:2401.03497).

    Attributes:
        roll: whether a waveform begins at a random sample, with what is before it at its end.
        time_mask: highest share of the frames that a mask covers.
        mel_mask: highest share of the mel bins that a mask covers.
    """

    roll: bool = True
    time_mask: Fraction = 0.2
    mel_mask: Fraction = 0.2


@dataclass(frozen=True)
class AugmentedView:
    """A random view for fine-tuning.

    Attributes:
        view: makes the spectrogram.
        augment: how it is varied.
    """

    view: SpectrogramView
    augment: SoundAugment

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return (1, frames, mel bins) float32, 0 where masked. Raises BadSample as the view does."""
        if self.augment.roll:
            waveform = np.roll(waveform, int(rng.integers(len(waveform)))) if len(waveform) else waveform
        x = self.view(waveform, rng)
        for dim, share in ((1, self.augment.time_mask), (2, self.augment.mel_mask)):
            length = int(rng.integers(int(share * x.shape[dim]) + 1))
            start = int(rng.integers(x.shape[dim] - length + 1))
            x.narrow(dim, start, length).zero_()
        return x
