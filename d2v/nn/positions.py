"""Fixed positions of a grid of tokens, as in MAE (arXiv:2111.06377) and the reference."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """(T,) coordinates -> (T, dim) float64: dim/2 sines, then dim/2 cosines, wavelengths 2 pi to 20000 pi."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions of a (height, width) grid in row-major order.

    Args:
        grid: tokens per column and per row.
        dim: features, a multiple of 4; the first half encodes the column, the second the row.

    Returns:
        (height * width, dim) float32.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"model.encoder.embed_dim={dim}: 2-d sine-cosine positions need a multiple of 4")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)], dim=1).float()
