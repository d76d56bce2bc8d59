"""What every modality provides: local features with positions, and how masked ones are left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v.nn.tokens import gather_tokens
from d2v.types import TokenMask


class Frontend(nn.Module):
    """From inputs to tokens. A modality subclasses it and writes :meth:`embed` and :meth:`token_grid`.

    Args:
        embed_dim: features D.
        num_prefix_tokens: learned tokens, the CLS token last, put before the sequence.
        input_norm: whether a (post-norm) encoder normalises its input tokens.
    """

    def __init__(self, embed_dim: int, num_prefix_tokens: int = 0, input_norm: bool = True) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_prefix_tokens = num_prefix_tokens
        self.input_norm = input_norm
        self.prefix_tokens = nn.Parameter(torch.empty(num_prefix_tokens, embed_dim)) if num_prefix_tokens else None
        if self.prefix_tokens is not None:
            nn.init.normal_(self.prefix_tokens)

    def token_grid(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape in which the T tokens of ``inputs`` lie, for the decoder's convolutions."""
        raise NotImplementedError("a frontend defines token_grid")

    def embed(self, inputs: Tensor) -> Tensor:
        """Local features with positions, computed once a sample: inputs -> (B, T, D)."""
        raise NotImplementedError("a frontend defines embed")

    def tokens(self, x_BTD: Tensor, mask: TokenMask | None) -> Tensor:
        """What enters the Transformer: prefix tokens, then all tokens, or the visible ones of every mask.

        Returns:
            (B, P + T, D) without a mask, (N, P + K, D) with.
        """
        x = x_BTD if mask is None else gather_tokens(x_BTD, mask.ids_keep, mask.num_masks)
        if self.prefix_tokens is not None:
            x = torch.cat([self.prefix_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x
