"""The encoder: a frontend for each modality, then Transformer blocks shared by all, data2vec 2.0 (arXiv:2212.07525).

N views = B samples x M masks, T tokens, K visible, P prefix tokens, D features
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.block import Block
from d2v.nn.frontends.base import Frontend
from d2v.nn.tokens import gather_tokens
from d2v.types import Batch, EncoderOutput, TokenMask
from d2v.values import Depth, Epsilon, FiniteFloat, NumHeads, Rate, Ratio, Width, buildable


@buildable
class Encoder(nn.Module):
    """Student or teacher.

    Args:
        frontends: one for every modality, by its name.
        embed_dim: features D.
        depth: Transformer blocks shared by the modalities; the targets come from these.
        num_heads: attention heads.
        prenet_depth: blocks of each modality's own before the shared ones.
        mlp_ratio: hidden width of the MLPs over ``embed_dim``.
        norm_first: pre-norm blocks instead of post-norm (all released models are post-norm).
        norm_eps: epsilon of the LayerNorms.
        drop_rate: dropout after attention projections.
        attn_drop_rate: dropout on attention weights.
        mlp_drop_rate: dropout inside MLPs.
        post_mlp_drop_rate: dropout on MLP outputs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        layer_drop_rate: probability of skipping a block for a batch, the same for all.
        layer_scale_init: what learned factors on the blocks' branches start at; None for no such factors.
        rel_pos_grid: (rows, columns) of patches: every block has a bias of relative positions of its own; or None.
        final_norm: a LayerNorm after the last block; None: where blocks are pre-norm.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``, or a frontend has another width.
    """

    def __init__(
        self,
        frontends: Mapping[str, Frontend],
        embed_dim: Width = 768,
        depth: Depth = 12,
        num_heads: NumHeads = 12,
        prenet_depth: Depth = 0,
        mlp_ratio: Ratio = 4.0,
        norm_first: bool = False,
        norm_eps: Epsilon = 1e-6,
        drop_rate: Rate = 0.0,
        attn_drop_rate: Rate = 0.0,
        mlp_drop_rate: Rate = 0.0,
        post_mlp_drop_rate: Rate = 0.0,
        drop_path_rate: Rate = 0.0,
        layer_drop_rate: Rate = 0.0,
        layer_scale_init: FiniteFloat | None = None,
        rel_pos_grid: tuple[Width, Width] | None = None,
        final_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"model.encoder.num_heads={num_heads} does not divide model.encoder.embed_dim={embed_dim}; "
                "choose a number of heads that does"
            )
        for modality, frontend in frontends.items():
            if frontend.embed_dim != embed_dim:
                raise ValueError(
                    f"model.encoder.frontends.{modality}.embed_dim={frontend.embed_dim} must equal "
                    f"model.encoder.embed_dim={embed_dim}"
                )
        self.embed_dim = embed_dim
        self.norm_first = norm_first
        final_norm = norm_first if final_norm is None else final_norm
        drop_path_rates = torch.linspace(0, drop_path_rate, prenet_depth + depth, device="cpu").tolist()

        def make_blocks(rates: list[float]) -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    norm_first,
                    norm_eps,
                    drop_rate,
                    attn_drop_rate,
                    mlp_drop_rate,
                    post_mlp_drop_rate,
                    rate,
                    layer_drop_rate,
                    layer_scale_init,
                    None if rel_pos_grid is None else (rel_pos_grid[0], rel_pos_grid[1]),
                )
                for rate in rates
            )

        self.frontends = nn.ModuleDict(frontends)
        self.input_norms = nn.ModuleDict(
            {
                modality: nn.LayerNorm(embed_dim, eps=norm_eps)
                for modality, frontend in frontends.items()
                if (frontend.input_norm or prenet_depth) and not norm_first
            }
        )
        self.prenets = nn.ModuleDict({modality: make_blocks(drop_path_rates[:prenet_depth]) for modality in frontends})
        self.blocks = make_blocks(drop_path_rates[prenet_depth:])
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()
        for blocks in (self.prenets, self.blocks):
            blocks.apply(_init_linear)

    def frontend(self, modality: str) -> Frontend:
        """The frontend of ``modality``; KeyError naming those there are."""
        if modality not in self.frontends:
            raise KeyError(f"no frontend for modality {modality!r}: this encoder has {sorted(self.frontends)}")
        frontend = self.frontends[modality]
        assert isinstance(frontend, Frontend)
        return frontend

    def context(
        self, modality: str, x_BTD: Tensor, mask: TokenMask | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Everything between local features and the shared blocks: drop masked tokens, positions, prefix, norm, prenet.

        Args:
            modality: whose frontend and prenet to use.
            x_BTD: (B, T, D) from the frontend's ``embed``.
            mask: M masks a sample, or None to see everything.
            padding_mask: (B, T) bool, True = padding, to which nothing attends; None where nothing is padded.

        Returns:
            (N, P + K, D), or (B, P + T, D) without a mask, and the bias of its attention logits, broadcastable to
            (N, heads, P + K, P + K), or None.
        """
        frontend = self.frontend(modality)
        x = frontend.tokens(x_BTD, mask, padding_mask)
        attn_bias = frontend.attn_bias(x_BTD.shape[1], mask)
        if padding_mask is not None:
            bias = _padding_bias(padding_mask, mask, frontend.num_prefix_tokens)
            attn_bias = bias if attn_bias is None else attn_bias + bias
        if modality in self.input_norms:
            x = self.input_norms[modality](x)
        x = F.dropout(x, frontend.input_drop_rate, self.training)
        prenet = self.prenets[modality]
        assert isinstance(prenet, nn.ModuleList)
        for block in prenet:
            x, _ = block(x, attn_bias)
        return x, attn_bias

    def forward(self, batch: Batch, return_layers: bool = False) -> EncoderOutput:
        """Features of whole, unmasked samples.

        Args:
            batch: its mask, if any, is ignored; features of its padding mean nothing.
            return_layers: also return every shared block's output.
        """
        features_BTD = self.frontend(batch.modality).embed(batch.inputs)
        return self.encode(batch.modality, features_BTD, batch.padding_mask, return_layers)

    def encode(
        self, modality: str, x_BTD: Tensor, padding_mask: Tensor | None = None, return_layers: bool = False
    ) -> EncoderOutput:
        """Features of whole samples from their local features.

        Args:
            modality: whose frontend and prenet to use.
            x_BTD: (B, T, D) from the frontend's ``embed``.
            padding_mask: (B, T) bool, True = padding; None where nothing is padded.
            return_layers: also return every shared block's output.
        """
        x, attn_bias = self.context(modality, x_BTD, padding_mask=padding_mask)
        hidden_states: list[Tensor] = []
        for block in self.blocks:
            x, _ = block(x, attn_bias)
            if return_layers:
                hidden_states.append(x)
        return EncoderOutput(self.norm(x), tuple(hidden_states), self.frontend(modality).num_prefix_tokens)


def _padding_bias(padding_mask: Tensor, mask: TokenMask | None, num_prefix_tokens: int) -> Tensor:
    """(N, 1, 1, P + K) float32: 0 for tokens to attend to, minus infinity for padding."""
    padding = padding_mask
    if mask is not None:
        padding = gather_tokens(padding.unsqueeze(-1), mask.ids_keep, mask.num_masks).squeeze(-1)
    padding = F.pad(padding, (num_prefix_tokens, 0))
    return torch.zeros(padding.shape, device=padding.device).masked_fill(padding, float("-inf"))[:, None, None]


def _init_linear(module: nn.Module) -> None:
    """N(0, .02) weights and zero biases, as BERT and the reference."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
