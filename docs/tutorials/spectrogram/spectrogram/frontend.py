"""Patches of a log-mel spectrogram, with fixed 2-d positions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.positions import sincos_2d
from d2v.values import buildable


@buildable
class SmallFrontend(Frontend):
    """(B, time, mels) spectrograms to one token a patch of ``patch_size`` x ``patch_size``.

    Args:
        embed_dim: features D.
        num_steps: time steps of a spectrogram.
        num_mels: mel bands.
        patch_size: side of a patch; must divide both.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("proj",)
    inputs_are: ClassVar[str] = "log-mel spectrograms (B, time, mels)"

    def __init__(self, embed_dim: int, num_steps: int, num_mels: int, patch_size: int) -> None:
        super().__init__(embed_dim)
        if num_steps % patch_size or num_mels % patch_size:
            raise ValueError(f"patch_size={patch_size} must divide num_steps={num_steps} and num_mels={num_mels}")
        self.shape = (num_steps, num_mels)
        self.grid = (num_steps // patch_size, num_mels // patch_size)
        self.proj = nn.Conv2d(1, embed_dim, patch_size, stride=patch_size)
        self.register_buffer("positions", sincos_2d(self.grid, embed_dim))

    def token_grid(self, inputs: Tensor) -> tuple[int, int]:
        """Patches in time and in mel bands."""
        return self.grid

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, time, mels) -> (B, T, D)."""
        return self.proj(inputs.unsqueeze(1)).flatten(2).transpose(1, 2) + self.positions

    def example(self, batch_size: int = 1) -> Tensor:
        """(B, time, mels) float32."""
        return torch.zeros(batch_size, *self.shape)
