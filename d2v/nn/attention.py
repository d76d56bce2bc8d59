"""Multi-head self-attention (arXiv:1706.03762)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with an optional bias of its logits.

    Args:
        dim: features D.
        num_heads: heads; must divide ``dim``.
        attn_drop_rate: dropout on attention weights.
        drop_rate: dropout after the projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Attributes:
        fused: whether PyTorch's ``scaled_dot_product_attention`` may be used.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop_rate: float = 0.0, drop_rate: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {dim}; choose one that does")
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.fused = True
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """Run attention among tokens.

        Args:
            x: (N, T, D) features.
            attn_bias: bias of the logits, broadcastable to (N, heads, T, T); or None.

        Returns:
            (N, T, D).
        """
        num_rows, num_tokens, dim = x.shape
        qkv = self.qkv(x).view(num_rows, num_tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, D / heads) each
        drop_rate = self.attn_drop_rate if self.training else 0.0
        if self.fused and not (q.dtype == torch.bfloat16 and q.device.type == "cpu"):
            attn_bias = None if attn_bias is None else attn_bias.to(q.dtype)
            x = F.scaled_dot_product_attention(q, k, v, attn_bias, drop_rate)
        else:
            x = attention(q, k, v, attn_bias, drop_rate)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(num_rows, num_tokens, dim)))


def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None = None, drop_rate: float = 0.0) -> Tensor:
    """Compute ``scaled_dot_product_attention`` by separate operations.

    In bfloat16 on a CPU they take a fifth of the time of the fused function's backward pass
    (docs/results/optimizations.md).

    Args:
        q: (N, heads, T, E) queries.
        k: (N, heads, T, E) keys.
        v: (N, heads, T, E) values.
        attn_bias: bias of the logits, broadcastable to (N, heads, T, T); or None.
        drop_rate: dropout on attention weights.

    Returns:
        (N, heads, T, E).
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_bias is not None:
        logits = logits + attn_bias
    return F.dropout(logits.softmax(dim=-1), drop_rate) @ v  # sums inside are float32, and weights are stored once
