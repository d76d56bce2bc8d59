"""Positions: fixed ones on a grid, as in MAE (arXiv:2111.06377), and relative ones on a sequence or a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import gen_relative_position_index
from torch import Tensor, nn


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Encode (T,) coordinates as (T, dim) float64: dim/2 sines, then dim/2 cosines, wavelengths 2 pi to 20000 pi."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Return sine-cosine positions of a (height, width) grid in row-major order.

    Args:
        grid: tokens per column and per row.
        dim: features, a multiple of 4; the first half encodes the column, the second the row.

    Returns:
        (height * width, dim) float32.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim}: 2-d sine-cosine positions need a multiple of 4")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)], dim=1).float()


class ConvPositions(nn.Module):
    """Relative positions of a sequence by convolutions, each followed by a LayerNorm and a GELU.

    As in data2vec (arXiv:2202.03555), sec. 4.2, after wav2vec 2.0.

    Args:
        dim: features D.
        depth: number of convolutions.
        kernel_size: tokens; an even kernel covers one more token on the left.
        groups: groups of every convolution; must divide ``dim``.
    """

    def __init__(self, dim: int, depth: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x_NTD: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return the positions of tokens, (N, T, D).

        Args:
            x_NTD: (N, T, D) tokens, masked ones set to zero.
            padding_mask: (N, T) bool, True = padding, set to zero before every convolution; None if nothing is padded.
        """
        x, num_tokens = x_NTD, x_NTD.shape[1]
        for conv in self.convs:
            if padding_mask is not None:
                x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
            x = conv(x.transpose(1, 2))[..., :num_tokens].transpose(1, 2)
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


def alibi_slopes(num_heads: int) -> Tensor:
    """Return ALiBi's slopes (heads,) float32: how fast each head's attention falls with distance (arXiv:2108.12409).

    For n heads, n a power of two: a geometric sequence from 2^(-8/n) to 2^-8. Otherwise: the sequence of the next lower
    power of two, then every second slope of the sequence for twice that power.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    own = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor([*own, *between][:num_heads])


class RelativePositionBias(nn.Module):
    """Learned bias of attention logits for every offset on a grid with one CLS token before it.

    As in BEiT (arXiv:2106.08254), after Swin.

    Args:
        grid: tokens per column and per row.
        num_heads: attention heads.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        index = gen_relative_position_index(grid, class_token=True)  # (1 + T, 1 + T), the last 3 entries are for CLS
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        num_offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3  # number of entries in the index, without reading it
        self.table = nn.Parameter(torch.zeros(num_offsets, num_heads))

    def forward(self) -> Tensor:
        """Return the bias (1, heads, 1 + T, 1 + T)."""
        return self.table[self.index].permute(2, 0, 1).unsqueeze(0)
