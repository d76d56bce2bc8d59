"""Base class of frontends, which turn inputs into tokens and drop the masked ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.nn.tokens import gather_tokens
from d2v.objective.targets import normalize_patches
from d2v.types import TokenMask
from d2v.values import NumPrefixTokens, Rate, Width


class Frontend(nn.Module):
    """Base class of frontends: inputs to tokens.

    Abstract: a subclass for a modality defines :meth:`embed`, :meth:`token_grid` and :meth:`example`; if its tokens are
    patches, also ``patch_values`` and :meth:`patches`; if decoders can predict other values of masked tokens than
    those of patches, also ``num_values`` and :meth:`values`.

    Args:
        embed_dim: features D.
        num_prefix_tokens: learned tokens before the sequence, the CLS token last.
        input_norm: whether a (post-norm) encoder normalises its input tokens even without a prenet.
        input_drop_rate: dropout on the tokens that enter the prenet, after that norm.
        mask_token: whether to add a learned token for masked tokens (data2vec 1.0); 2.0 drops masked tokens.

    Attributes:
        local_parts: names of the submodules that :meth:`embed` uses. A teacher of scope "context" uses the student's
            local features, so it does not average these.
        extractor_parts: those of ``local_parts`` that fine-tuning can freeze; () for all.
        inputs_are: description of ``inputs`` for model cards.
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
        """V, number of input values of each token; 0 if tokens are not patches."""
        return 0

    def patches(self, inputs: Tensor) -> Tensor:
        """Return the input values of each token, (B, T, V), if ``patch_values`` is not 0."""
        raise NotImplementedError("a frontend of patches defines patches")

    @property
    def num_values(self) -> int:
        """V, number of values of each token that :meth:`values` returns; 0 for none."""
        return self.patch_values

    def values(self, inputs: Tensor) -> Tensor:
        """Return normalised values of each token's part of the inputs, (B, T, V) float32, if ``num_values`` is not 0.

        A decoder can predict them at masked tokens, beside the teacher's targets. Of patches they are the input values,
        normalised to zero mean and unit variance (MAE, arXiv:2111.06377, table 1d).
        """
        return normalize_patches(self.patches(inputs))

    @property
    def can_hide(self) -> bool:
        """Return whether :meth:`hide` works."""
        return self.mask_token is not None

    def token_grid(self, inputs: Tensor) -> tuple[int, ...]:
        """Return the shape of the grid of the T tokens of ``inputs``, for the decoder's convolutions."""
        raise NotImplementedError("a frontend defines token_grid")

    def embed(self, inputs: Tensor) -> Tensor:
        """Return local features (B, T, D) of the inputs, computed once a sample."""
        raise NotImplementedError("a frontend defines embed")

    def example(self, batch_size: int = 1) -> Tensor:
        """Return valid inputs of the right shape and dtype, all zeros."""
        raise NotImplementedError("a frontend defines example")

    def start_from(self, inputs: Iterable[Tensor]) -> None:
        """Replace random initial parameters by statistics of training inputs.

        Args:
            inputs: of training batches.

        Raises:
            ValueError: the frontend has no such start.
        """
        raise ValueError(f"init_samples: a {type(self).__name__} has no start from statistics of inputs; set it to 0")

    def hide(self, inputs: Tensor, mask: TokenMask) -> tuple[Tensor, Tensor | None]:
        """Return local features with masked tokens replaced, data2vec 1.0 (arXiv:2202.03555), sec. 3.1.

        Args:
            inputs: B samples.
            mask: M masks a sample.

        Returns:
            (N, T, D) features, and the (B, T, D) features without masks, or None if they were not needed.
        """
        assert self.mask_token is not None, "data2vec 1.0 has checked that there is one"
        features_BTD = self.embed(inputs)
        token = self.mask_token.to(features_BTD.dtype)
        views_NTD = features_BTD.repeat_interleave(mask.num_masks, dim=0)
        return torch.where(mask.mask.unsqueeze(-1), token, views_NTD), features_BTD

    def tokens(self, x_BTD: Tensor, mask: TokenMask | None, padding_mask: Tensor | None = None) -> Tensor:
        """Return the inputs of the Transformer: prefix tokens, then all tokens or the visible ones of every mask.

        Args:
            x_BTD: (B, T, D) local features.
            mask: M masks a sample, or None to keep all tokens.
            padding_mask: (B, T) bool, True = padding; None if nothing is padded.

        Returns:
            (B, P + T, D) without a mask, (N, P + K, D) with one.
        """
        return self.with_prefix(x_BTD if mask is None else gather_tokens(x_BTD, mask.ids_keep, mask.num_masks))

    def attn_bias(self, num_tokens: int, mask: TokenMask | None) -> Tensor | None:
        """Return relative positions as a bias of attention logits, for the tokens that :meth:`tokens` returns.

        Returns:
            (1 or N, heads, P + K, P + K) float32, or None for none.
        """
        return None

    def with_prefix(self, x: Tensor) -> Tensor:
        """Prepend the prefix tokens: (N, K, D) -> (N, P + K, D)."""
        if self.prefix_tokens is None:
            return x
        return torch.cat([self.prefix_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
