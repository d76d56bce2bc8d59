"""Frontend for text: token and learned position embeddings with a LayerNorm, as in RoBERTa; data2vec 2.0
(arXiv:2212.07525).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.nn.cooccurrence import MAX_VOCAB_SIZE, counted_embeddings
from d2v.nn.frontends.base import Frontend
from d2v.types import TokenMask
from d2v.values import Count, Epsilon, NumPrefixTokens, PositiveFloat, Rate, VocabSize, Width, buildable


@buildable
class TextFrontend(Frontend):
    """Token embeddings, learned position embeddings and a LayerNorm.

    Args:
        embed_dim: features D.
        vocab_size: number of token ids, 0 to ``vocab_size`` - 1.
        max_positions: longest input, tokens.
        pad_id: id of padding, in [0, vocab_size); its embeddings are not trained.
        drop_rate: dropout on the embeddings, drawn once a sample, for all of its masks and the teacher.
        token_init_std: initial standard deviation of token embeddings. The LayerNorm removes their scale, so a larger
            value only slows their learning.
        pos_init_std: initial standard deviation of position embeddings. If it equals ``token_init_std``, as in the
            released models, positions explain half of the variance of a fresh teacher's targets.
        num_prefix_tokens: learned tokens before the text.
        input_drop_rate: dropout on the tokens that enter the prenet.
        mask_id: id that replaces masked tokens in data2vec 1.0; None for none.
        norm_eps: epsilon of the LayerNorm.

    Raises:
        ValueError: ``pad_id`` or ``mask_id`` is not in the vocabulary.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("token_embed", "pos_embed", "norm")
    inputs_are: ClassVar[str] = "token ids (B, tokens) of the tokenizer beside config.yaml"

    def __init__(
        self,
        embed_dim: Width,
        vocab_size: VocabSize,
        max_positions: VocabSize = 512,
        pad_id: Count = 1,
        drop_rate: Rate = 0.1,
        token_init_std: PositiveFloat = 0.02,
        pos_init_std: PositiveFloat = 0.02,
        num_prefix_tokens: NumPrefixTokens = 0,
        input_drop_rate: Rate = 0.0,
        mask_id: Count | None = None,
        norm_eps: Epsilon = 1e-5,
    ) -> None:
        super().__init__(embed_dim, num_prefix_tokens, input_norm=False, input_drop_rate=input_drop_rate)
        for name, token_id in (("pad_id", pad_id), ("mask_id", mask_id)):
            if token_id is not None and not 0 <= token_id < vocab_size:
                raise ValueError(f"{name}={token_id}: must be an id of the vocabulary, 0 to {vocab_size - 1}")
        self.max_positions = max_positions
        self.pad_id = pad_id
        self.mask_id = mask_id
        self.token_init_std = token_init_std
        self.token_embed = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id)
        # The ids of positions start after pad_id, which stands for "no position", as in the released models.
        self.pos_embed = nn.Embedding(max_positions + pad_id + 1, embed_dim, padding_idx=pad_id)
        for embedding, std in ((self.token_embed, token_init_std), (self.pos_embed, pos_init_std)):
            nn.init.normal_(embedding.weight, std=std)
            nn.init.zeros_(embedding.weight[pad_id])
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.drop = nn.Dropout(drop_rate)

    def token_grid(self, inputs: Tensor) -> tuple[int]:
        """Return (T,) of (B, T) ids."""
        return (inputs.shape[1],)

    def example(self, batch_size: int = 1) -> Tensor:
        """Return (B, T) int64 ids without padding."""
        return torch.full((batch_size, min(16, self.max_positions)), 0 if self.pad_id else 1)

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed (B, T) int64 ids as (B, T, D) features of tokens and positions; padding has no position.

        Raises:
            ValueError: the text is longer than ``max_positions``.
        """
        if inputs.shape[1] > self.max_positions:
            raise ValueError(
                f"texts of {inputs.shape[1]} tokens reached an encoder with {self.max_positions} positions: lower "
                "block_size, or raise max_positions"
            )
        real = inputs != self.pad_id
        positions = real.cumsum(1) * real + self.pad_id
        return self.drop(self.norm(self.token_embed(inputs) + self.pos_embed(positions)))

    @torch.no_grad()
    def start_from(self, inputs: Iterable[Tensor]) -> None:
        """Set token embeddings to factored counts of neighbours, as long as random ones are on average.

        Tokens that do not occur keep their random embeddings.

        Args:
            inputs: (B, T) int64 ids of training batches.

        Raises:
            ValueError: the vocabulary is too large to count all pairs, or smaller than the embeddings are wide.
        """
        vocab_size = self.token_embed.num_embeddings
        if not self.embed_dim <= vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size={vocab_size}: counts of neighbours are for {self.embed_dim} (embed_dim) to "
                f"{MAX_VOCAB_SIZE} ids; choose such a vocabulary, or set init_samples=0"
            )
        embeddings = counted_embeddings(inputs, vocab_size, self.embed_dim)
        lengths = embeddings.norm(dim=1, keepdim=True)
        scaled = embeddings / lengths * self.token_init_std * self.embed_dim**0.5
        known = (lengths > 1e-4 * lengths.max()).index_fill(0, torch.tensor([self.pad_id]), False)
        self.token_embed.weight.copy_(scaled.where(known, self.token_embed.weight))

    @property
    def can_hide(self) -> bool:
        """Return whether :meth:`hide` works."""
        return self.mask_id is not None

    def hide(self, inputs: Tensor, mask: TokenMask) -> tuple[Tensor, Tensor | None]:
        """Embed (B, T) ids with mask tokens as (N, T, D) features; features without masks are not computed (None)."""
        assert self.mask_id is not None, "data2vec 1.0 has checked that there is one"
        views_NT = inputs.repeat_interleave(mask.num_masks, dim=0)
        return self.embed(views_NT.masked_fill(mask.mask, self.mask_id)), None
