"""Log-mel spectra of the frames of a convolutional frontend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Logarithms of the energy in mel bands, one spectrum for every frame of a stack of convolutions.

    A spectrum is that of the samples that the convolutions see of the frame (its receptive field), under a Hann window.
    The bands are triangles that are equally wide in mels (O'Shaughnessy's formula) at a sample rate of 16 kHz; they
    cover all frequencies at any rate.

    Args:
        conv_layers: (channels, kernel size, stride) of every convolution on the waveform, in samples of its input.
        num_bands: mel bands V.
    """

    def __init__(self, conv_layers: Sequence[Sequence[int]], num_bands: int = 40) -> None:
        super().__init__()
        self.num_bands = num_bands
        self.hop, self.length = 1, 1
        for _, kernel_size, stride in conv_layers:
            self.length += (kernel_size - 1) * self.hop
            self.hop *= stride
        self.fft_size = 2 * 2 ** (self.length - 1).bit_length()  # twice the window: fine enough for the narrow bands
        self.register_buffer("window", torch.hann_window(self.length, periodic=False), persistent=False)
        self.register_buffer("bands", mel_bands(self.fft_size, num_bands), persistent=False)
        self.window: Tensor
        self.bands: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, T, V) float32 of (B, S) waveforms."""
        with torch.autocast(inputs.device.type, enabled=False):
            frames = inputs.float().unfold(1, self.length, self.hop) * self.window  # (B, T, samples)
            energy = torch.fft.rfft(frames, self.fft_size).abs().square() / self.length  # (B, T, frequencies)
            return (energy @ self.bands + 1e-5).log()  # silence stays finite; clips have unit variance


def mel_bands(fft_size: int, num_bands: int, sample_rate: float = 16000.0) -> Tensor:
    """Return the weights of frequencies in triangular mel bands, (fft_size // 2 + 1, bands) float32."""
    frequencies = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, device="cpu")
    mels = 2595 * torch.log10(1 + frequencies / 700)
    edges = torch.linspace(0, float(mels[-1]), num_bands + 2, device="cpu")
    width = edges[1]
    return (1 - (mels.unsqueeze(1) - edges[1:-1]).abs() / width).clamp(min=0)
