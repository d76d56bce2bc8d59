"""Base class of frontends: local features with positions, and the omission of masked ones."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.nn.tokens import gather_tokens
from d2v.types import TokenMask
from d2v.values import NumPrefixTokens, Rate, Width


class Frontend(nn.Module):
    """From inputs to tokens.

    Abstract: a modality subclasses it and writes :meth:`embed`, :meth:`token_grid` and :meth:`example`; one whose
    tokens are patches also ``patch_values`` and :meth:`patches`.

    Args:
        embed_dim: features D.
        num_prefix_tokens: learned tokens, the CLS token last, put before the sequence.
        input_norm: whether a (post-norm) encoder normalises its input tokens even without a prenet.
        input_drop_rate: dropout on the tokens that enter the prenet, after that norm.
        mask_token: whether there is a learned token that stands for masked ones (data2vec 1.0); 2.0 leaves them out.

    Attributes:
        local_parts: names of the submodules that :meth:`embed` uses. A teacher whose scope is "context" takes the
            student's local features, so it does not average these.
        extractor_parts: of these, what fine-tuning can leave untrained; () for all.
        inputs_are: what ``inputs`` are, in words, for model cards.
    """

    local_parts: ClassVar[tuple[str, ...]] = ()
    extractor_parts: ClassVar[tuple[str, ...]] = ()
    inputs_are: ClassVar[str] = "inputs"

    def __init__(
        self,
        embed_dim: Width,
        num_prefix_tokens: NumPrefixTokens = 0,
        input_norm: bool = True,
        input_drop_rate: Rate = 0.0,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_prefix_tokens = num_prefix_tokens
        self.input_norm = input_norm
        self.input_drop_rate = input_drop_rate
        self.prefix_tokens = nn.Parameter(torch.empty(num_prefix_tokens, embed_dim)) if num_prefix_tokens else None
        if self.prefix_tokens is not None:
            nn.init.normal_(self.prefix_tokens)
        self.mask_token = nn.Parameter(torch.empty(embed_dim)) if mask_token else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    @property
    def patch_values(self) -> int:
        """V, values of the inputs that each token is made of, by itself; 0 where tokens share them."""
        return 0

    def patches(self, inputs: Tensor) -> Tensor:
        """Return the input values of each token, where ``patch_values`` is not 0: inputs -> (B, T, V)."""
        raise NotImplementedError("a frontend of patches defines patches")

    @property
    def can_hide(self) -> bool:
        """Return whether :meth:`hide` works."""
        return self.mask_token is not None

    def token_grid(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape in which the T tokens of ``inputs`` lie, for the decoder's convolutions."""
        raise NotImplementedError("a frontend defines token_grid")

    def embed(self, inputs: Tensor) -> Tensor:
        """Local features, computed once a sample: inputs -> (B, T, D)."""
        raise NotImplementedError("a frontend defines embed")

    def example(self, batch_size: int = 1) -> Tensor:
        """Valid inputs of the right shape and dtype, all zeros."""
        raise NotImplementedError("a frontend defines example")

    def hide(self, inputs: Tensor, mask: TokenMask) -> tuple[Tensor, Tensor | None]:
        """Local features in which masked tokens are replaced, data2vec 1.0 (arXiv:2202.03555), sec. 3.1.

        Args:
            inputs: B samples.
            mask: M masks a sample.

        Returns:
            (N, T, D), and the (B, T, D) features without masks, or None where they had not to be computed.
        """
        assert self.mask_token is not None, "data2vec 1.0 has checked that there is one"
        features_BTD = self.embed(inputs)
        token = self.mask_token.to(features_BTD.dtype)
        views_NTD = features_BTD.repeat_interleave(mask.num_masks, dim=0)
        return torch.where(mask.mask.unsqueeze(-1), token, views_NTD), features_BTD

    def tokens(self, x_BTD: Tensor, mask: TokenMask | None, padding_mask: Tensor | None = None) -> Tensor:
        """Return the inputs of the Transformer: prefix tokens, then all tokens, or the visible ones of every mask.

        Args:
            x_BTD: (B, T, D) local features.
            mask: M masks a sample, or None to see everything.
            padding_mask: (B, T) bool, True = padding; None where nothing is padded.

        Returns:
            (B, P + T, D) without a mask, (N, P + K, D) with.
        """
        return self.with_prefix(x_BTD if mask is None else gather_tokens(x_BTD, mask.ids_keep, mask.num_masks))

    def attn_bias(self, num_tokens: int, mask: TokenMask | None) -> Tensor | None:
        """Relative positions as a bias on attention logits, for the tokens that :meth:`tokens` returns.

        Returns:
            (1 or N, heads, P + K, P + K) float32, or None for none.
        """
        return None

    def with_prefix(self, x: Tensor) -> Tensor:
        """(N, K, D) -> (N, P + K, D)."""
        if self.prefix_tokens is None:
            return x
        return torch.cat([self.prefix_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
