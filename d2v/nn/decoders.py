"""The student's light convolutional decoder: data2vec 2.0 (arXiv:2212.07525), sec. 3.2.

N views, T = H * W tokens, K visible, D encoder features, E decoder features
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.tokens import gather_tokens
from d2v.types import TokenMask


class ConvDecoder2d(nn.Module):
    """Puts visible tokens back on their grid, noise everywhere else, and convolves.

    A layer is a convolution, a LayerNorm without affine and a GELU, with a residual wherever shapes agree.
    Everything stays in (N, H, W, E) order: a channels-last convolution and no transposes for the norm.

    Args:
        embed_dim: encoder features D.
        decoder_dim: decoder features E.
        depth: convolutions.
        kernel_size: side of a kernel in tokens, odd.
        groups: groups of every convolution; must divide D and E.
        mask_noise_std: standard deviation of the noise at masked tokens.
        input_drop_rate: dropout on the visible tokens.

    Raises:
        ValueError: an even kernel, no layer, or groups that do not divide.
    """

    def __init__(
        self,
        embed_dim: int,
        decoder_dim: int = 384,
        depth: int = 6,
        kernel_size: int = 3,
        groups: int = 16,
        mask_noise_std: float = 0.01,
        input_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"decoder kernel_size={kernel_size}: must be odd; try {kernel_size + 1}")
        if depth < 1:
            raise ValueError(f"decoder depth={depth}: must be at least 1")
        if embed_dim % groups or decoder_dim % groups:
            raise ValueError(f"decoder groups={groups} must divide embed_dim={embed_dim} and decoder_dim={decoder_dim}")
        self.mask_noise_std = mask_noise_std
        self.input_drop = nn.Dropout(input_drop_rate)
        self.convs = nn.ModuleList(
            nn.Conv2d(
                embed_dim if i == 0 else decoder_dim, decoder_dim, kernel_size, padding=kernel_size // 2, groups=groups
            )
            for i in range(depth)
        )
        self.proj = nn.Linear(decoder_dim, embed_dim)

    def forward(self, x_NKD: Tensor, mask: TokenMask, grid: tuple[int, int]) -> Tensor:
        """Predictions at the masked tokens.

        Args:
            x_NKD: (N, K, D) encoded visible tokens, without prefix tokens.
            mask: N masks over T = H * W tokens.
            grid: (H, W).

        Returns:
            (N, T - K, D), in the order of ``mask.ids_mask``.
        """
        num_masked = mask.ids_mask.shape[1]
        noise = torch.randn(len(x_NKD), num_masked, x_NKD.shape[2], dtype=x_NKD.dtype, device=x_NKD.device).mul_(
            self.mask_noise_std
        )
        x = gather_tokens(torch.cat([self.input_drop(x_NKD), noise], dim=1), mask.ids_restore)  # (N, T, D)
        x = x.view(len(x), *grid, -1)  # (N, H, W, D)
        for conv in self.convs:
            y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, E)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if x.shape == y.shape else y
        return self.proj(gather_tokens(x.flatten(1, 2), mask.ids_mask))
