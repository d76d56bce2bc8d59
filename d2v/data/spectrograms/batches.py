"""Views of recordings as spectrograms, made in the data workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.data.bad_samples import TOO_SHORT, BadSample
from d2v.data.spectrograms.filter_bank import FilterBank

MODALITY = "spectrogram"


@dataclass(frozen=True)
class SpectrogramView:
    """Normalised spectrogram of a recording, padded or cut to a number of frames.

    Attributes:
        bank: the filter bank.
        num_frames: frames of every view. Shorter recordings are padded with zeros before normalisation, as in EAT.
        mean: of log energies in training.
        std: of these; values are divided by twice as much.
        random_crop: whether a view with a generator begins at a random frame of a longer recording, else at its first.
    """

    bank: FilterBank
    num_frames: int
    mean: float
    std: float
    random_crop: bool = False

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Return (1, num_frames, mel bins) float32. Raises BadSample for recordings shorter than one window."""
        spare = self.bank.num_frames(len(waveform)) - self.num_frames
        start = int(rng.integers(spare + 1)) * self.bank.shift if rng and self.random_crop and spare > 0 else 0
        x = self.energies(waveform, start)
        return ((F.pad(x, (0, 0, 0, self.num_frames - len(x))) - self.mean) / (2 * self.std)).unsqueeze(0)

    def energies(self, waveform: np.ndarray, start: int = 0) -> Tensor:
        """Return log energies (frames, mel bins) of at most ``num_frames`` frames from a sample on."""
        if len(waveform) < self.bank.window_length:
            raise BadSample(f"{TOO_SHORT}: {len(waveform)} samples, a window takes {self.bank.window_length}")
        x = torch.from_numpy(waveform)
        section = x[start : start + self.bank.num_samples(self.num_frames)]
        return self.bank(section - x.mean())
