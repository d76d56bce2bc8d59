"""Gathering of tokens from (B, T, D) features by (N, K) indices, without expanding either to (N, T, D)."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(x_BTD: Tensor, ids_NK: Tensor, num_masks: int = 1) -> Tensor:
    """Return the tokens ``ids_NK[n]`` of sample n // num_masks as row n.

    Args:
        x_BTD: (B, T, D) features, one row a sample.
        ids_NK: (N, K) int64 in [0, T), N = B * num_masks, sample-major.
        num_masks: M.

    Returns:
        (N, K, D).
    """
    num_samples, num_tokens, dim = x_BTD.shape
    num_rows, num_ids = ids_NK.shape
    starts = torch.arange(num_samples, device=ids_NK.device).repeat_interleave(
        num_masks, output_size=num_samples * num_masks
    )
    flat_ids = (ids_NK + starts[:, None] * num_tokens).flatten()
    return x_BTD.reshape(-1, dim).index_select(0, flat_ids).view(num_rows, num_ids, dim)
