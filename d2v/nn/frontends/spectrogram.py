"""Frontend for log-mel spectrograms: square patches with fixed 2-d positions, as in EAT (arXiv:2401.03497)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.positions import sincos_2d
from d2v.values import ImageSize, NumFrames, NumPrefixTokens, Width, buildable


@buildable
class SpectrogramFrontend(Frontend):
    """Patch embedding of spectrograms of any length, with sine-cosine positions of time and mel bins.

    Patches are in the order of time, then of mel bins. Positions do not depend on the length: a shorter spectrogram
    has the first rows of the positions of a longer one.

    Args:
        embed_dim: features D, a multiple of 4.
        num_frames: frames of a spectrogram in training, of 10 ms.
        num_mels: mel bins of a spectrogram.
        patch_size: frames and mel bins of a patch; must divide ``num_mels``.
        max_frames: frames of the longest spectrogram that has positions.
        num_prefix_tokens: 1 for the CLS token; 0 for none.

    Raises:
        ValueError: sizes do not fit each other.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("proj",)
    inputs_are: ClassVar[str] = (
        "log-mel spectrograms (B, 1, frames, mel bins), a frame every 10 ms, normalised by config.yaml's inputs.mean "
        "and inputs.std: (x - mean) / (2 std)"
    )

    def __init__(
        self,
        embed_dim: Width,
        num_frames: NumFrames = 1024,
        num_mels: Width = 128,
        patch_size: ImageSize = 16,
        max_frames: NumFrames = 12288,
        num_prefix_tokens: NumPrefixTokens = 1,
    ) -> None:
        super().__init__(embed_dim, num_prefix_tokens)
        if num_mels % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide num_mels={num_mels}; choose a divisor")
        if not patch_size <= num_frames <= max_frames:
            raise ValueError(f"num_frames={num_frames}: choose {patch_size} (patch_size) to {max_frames} (max_frames)")
        self.num_frames, self.num_mels, self.patch_size, self.max_frames = num_frames, num_mels, patch_size, max_frames
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))
        grid = (max_frames // patch_size, num_mels // patch_size)
        self.register_buffer("positions", sincos_2d(grid, embed_dim))
        self.positions: Tensor

    def token_grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the numbers of patches in time and in mel bins; frames after the last whole patch are left out."""
        return inputs.shape[-2] // self.patch_size, inputs.shape[-1] // self.patch_size

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros (B, 1, frames, mel bins) float32."""
        return torch.zeros(batch_size, 1, self.num_frames, self.num_mels)

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed (B, 1, frames, mel bins) spectrograms as (B, T, D) patch features with positions.

        Raises:
            ValueError: the encoder does not read spectrograms of this size.
        """
        channels, num_frames, num_mels = inputs.shape[1:]
        if (channels, num_mels) != (1, self.num_mels) or not self.patch_size <= num_frames <= self.max_frames:
            raise ValueError(
                f"spectrograms of shape {tuple(inputs.shape[1:])} reached an encoder of (1, {self.patch_size} to "
                f"{self.max_frames} frames, {self.num_mels} mel bins): set num_mels and num_frames of the data"
            )
        x_BTD = self.proj(inputs).flatten(2).transpose(1, 2)
        return x_BTD + self.positions[: x_BTD.shape[1]]

    @property
    def patch_values(self) -> int:
        """Number of values of a patch."""
        return self.patch_size**2

    def patches(self, inputs: Tensor) -> Tensor:
        """Cut (B, 1, frames, mel bins) spectrograms into (B, T, patch_size**2) values."""
        return F.unfold(inputs, self.patch_size, stride=self.patch_size).transpose(1, 2)
