"""Logarithmic mel filter bank of Kaldi (compute-fbank-feats), with Hann windows and without dither, as in AST and EAT.

S samples, T frames, V mel bins
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_WINDOW, _SHIFT = 0.025, 0.01  # seconds
_PREEMPHASIS = 0.97
_LOWEST = 20.0  # Hz


@dataclass(frozen=True)
class FilterBank:
    """Log energies in mel bins, of 25 ms every 10 ms; windows that reach over the end are left out.

    Attributes:
        sample_rate: of waveforms, Hz.
        num_mels: V, triangular mel bins from 20 Hz to half the sample rate.
    """

    sample_rate: int
    num_mels: int

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return int(self.sample_rate * _WINDOW)

    @property
    def shift(self) -> int:
        """Samples between the beginnings of two windows."""
        return int(self.sample_rate * _SHIFT)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of whole windows in a waveform."""
        return max(0, 1 + (num_samples - self.window_length) // self.shift)

    def num_samples(self, num_frames: int) -> int:
        """Return the samples that so many windows cover."""
        return (num_frames - 1) * self.shift + self.window_length

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return (T, V) float32 of a waveform (S,) of at least one window, samples in [-1, 1]."""
        frames = waveform.unfold(0, self.window_length, self.shift)
        frames = frames - frames.mean(dim=1, keepdim=True)
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = (frames - _PREEMPHASIS * previous) * self._window
        power = torch.fft.rfft(frames, self._fft_size).abs().square()
        return (power @ self._bands).clamp(min=torch.finfo(torch.float32).eps).log()

    @property
    def _fft_size(self) -> int:
        size: int = 2 ** math.ceil(math.log2(self.window_length))
        return size

    @cached_property
    def _window(self) -> Tensor:
        return torch.hann_window(self.window_length, periodic=False)

    @cached_property
    def _bands(self) -> Tensor:
        """Weights of frequencies, (fft_size / 2 + 1, V); the triangles are straight on the mel scale."""
        mels = _mels(torch.arange(self._fft_size // 2 + 1) * (self.sample_rate / self._fft_size)).unsqueeze(1)
        low, high = (1127 * math.log1p(hertz / 700) for hertz in (_LOWEST, self.sample_rate / 2))
        edges = low + torch.arange(self.num_mels + 2) * ((high - low) / (self.num_mels + 1))
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        return torch.minimum((mels - left) / (centre - left), (right - mels) / (right - centre)).clamp(min=0)


def _mels(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()
