"""Encoder: a frontend for each modality, then a trunk shared by all, data2vec 2.0 (arXiv:2212.07525).

N views = B samples x M masks, T tokens, K visible, P prefix tokens, D features
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.tokens import gather_tokens
from d2v.nn.trunk import Transformer, Trunk, linear_rates
from d2v.types import Batch, EncoderOutput, TokenMask
from d2v.values import Depth, Epsilon, FiniteFloat, NumHeads, Rate, Ratio, Width, buildable


@buildable
class Encoder(nn.Module):
    """Network of student and teacher: frontends, prenets and a trunk.

    :func:`transformer_encoder` builds one with a Transformer as trunk.

    Args:
        frontends: one frontend for every modality.
        trunk: layers shared by the modalities; the targets come from these.
        prenets: layers before the trunk for single modalities, by modality; None for none.
        input_norm: whether a LayerNorm precedes the prenet, or the trunk if the frontend requests one.
        norm_eps: epsilon of this norm.

    Raises:
        ValueError: the width of a frontend or prenet differs from that of the trunk.
    """

    def __init__(
        self,
        frontends: Mapping[str, Frontend],
        trunk: Trunk,
        prenets: Mapping[str, Trunk] | None = None,
        input_norm: bool = True,
        norm_eps: Epsilon = 1e-6,
    ) -> None:
        super().__init__()
        prenets = prenets or {}
        for kind, parts in (("frontends", frontends), ("prenets", prenets)):
            for modality, part in parts.items():
                if part.embed_dim != trunk.embed_dim:
                    raise ValueError(
                        f"{kind}.{modality}.embed_dim={part.embed_dim} must equal embed_dim={trunk.embed_dim}"
                    )
        self.embed_dim = trunk.embed_dim
        self.frontends = nn.ModuleDict(frontends)
        self.input_norms = nn.ModuleDict(
            {
                modality: nn.LayerNorm(trunk.embed_dim, eps=norm_eps)
                for modality, frontend in frontends.items()
                if input_norm and (frontend.input_norm or modality in prenets)
            }
        )
        self.prenets = nn.ModuleDict(prenets)
        self.trunk = trunk
        for part in (*prenets.values(), trunk):
            part.init_weights()

    @property
    def depth(self) -> int:
        """Number of layers of the deepest prenet plus those of the trunk."""
        return self._prenet_depth + self.trunk.depth

    @property
    def _prenet_depth(self) -> int:
        return max((self.prenet(modality).depth for modality in self.prenets), default=0)

    def layer_of(self, name: str) -> int:
        """Return the index of the layer of a parameter, for layer-wise learning rates.

        0: before all layers (frontends, input norms); 1 to ``depth``: a layer of a prenet or the trunk; ``depth + 1``:
        after the last layer.

        Args:
            name: name of the parameter in the encoder.
        """
        part, _, rest = name.partition(".")
        if part == "prenets":
            modality, _, rest = rest.partition(".")
            return 1 + self.prenet(modality).layer_of(rest)
        return 1 + self._prenet_depth + self.trunk.layer_of(rest) if part == "trunk" else 0

    def prenet(self, modality: str) -> Trunk:
        """Return the prenet of a modality that has one."""
        prenet = self.prenets[modality]
        assert isinstance(prenet, Trunk)
        return prenet

    def frontend(self, modality: str) -> Frontend:
        """Return the frontend of a modality.

        Raises:
            KeyError: the encoder has no such frontend; the message lists its modalities.
        """
        if modality not in self.frontends:
            raise KeyError(f"no frontend for modality {modality!r}: this encoder has {sorted(self.frontends)}")
        frontend = self.frontends[modality]
        assert isinstance(frontend, Frontend)
        return frontend

    def context(
        self, modality: str, x_BTD: Tensor, mask: TokenMask | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Turn local features into inputs of the trunk: drop masked tokens, add positions and prefix, norm, prenet.

        Args:
            modality: selects frontend and prenet.
            x_BTD: (B, T, D) local features from the frontend's ``embed``.
            mask: M masks a sample, or None to keep all tokens.
            padding_mask: (B, T) bool, True = padding, to which no token attends; None if nothing is padded.

        Returns:
            (N, P + K, D), or (B, P + T, D) without a mask; and the bias of attention logits, broadcastable to
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
        if modality in self.prenets:
            x = self.prenets[modality](x, attn_bias)
        return x, attn_bias

    def forward(self, batch: Batch, return_layers: bool = False) -> EncoderOutput:
        """Return features of whole, unmasked samples.

        Args:
            batch: inputs of one modality; the mask is ignored. Ignore the features of padding.
            return_layers: also return the output of every layer of the trunk.
        """
        features_BTD = self.frontend(batch.modality).embed(batch.inputs)
        return self.encode(batch.modality, features_BTD, None, batch.padding_mask, return_layers)

    def encode(
        self,
        modality: str,
        x_BTD: Tensor,
        mask: TokenMask | None = None,
        padding_mask: Tensor | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Return features of whole samples, or of the visible tokens of every mask, from local features.

        Args:
            modality: selects frontend and prenet.
            x_BTD: (B, T, D) local features from the frontend's ``embed``.
            mask: M masks a sample, or None to keep all tokens.
            padding_mask: (B, T) bool, True = padding; None if nothing is padded.
            return_layers: also return the output of every layer of the trunk.

        Raises:
            ValueError: the trunk returned another number of tokens than its input has.
        """
        x, attn_bias = self.context(modality, x_BTD, mask, padding_mask)
        num_tokens = x.shape[1]
        hidden_states: list[Tensor] = []
        for x, _ in self.trunk.layers(x, attn_bias):  # noqa: B020  # the input is no longer needed
            if return_layers:
                hidden_states.append(x)
        if x.shape[1] != num_tokens:
            raise ValueError(
                f"{type(self.trunk).__name__} returned {x.shape[1]} tokens of {num_tokens}: a trunk's output t has to "
                "belong to input token t"
            )
        return EncoderOutput(self.trunk.norm(x), tuple(hidden_states), self.frontend(modality).num_prefix_tokens)


@buildable
def transformer_encoder(
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
) -> Encoder:
    """Build an encoder of Transformer blocks, with prenets of the same form.

    Args:
        frontends: one frontend for every modality.
        embed_dim: features D.
        depth: Transformer blocks shared by the modalities; the targets come from these.
        num_heads: attention heads; must divide ``embed_dim``.
        prenet_depth: Transformer blocks of each modality before the shared ones.
        mlp_ratio: hidden width of the MLPs divided by ``embed_dim``.
        norm_first: pre-norm blocks instead of post-norm (all released models are post-norm).
        norm_eps: epsilon of all LayerNorms, including those of input tokens.
        drop_rate: dropout after attention projections.
        attn_drop_rate: dropout on attention weights.
        mlp_drop_rate: dropout inside MLPs.
        post_mlp_drop_rate: dropout on MLP outputs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first, prenets included.
        layer_drop_rate: probability of skipping a block for a batch.
        layer_scale_init: initial value of layer scale on the blocks' branches; None for no layer scale.
        rel_pos_grid: (rows, columns) of patches, for a bias of relative positions in every block; None for none.
        final_norm: whether a LayerNorm follows the last block; None: only if blocks are pre-norm.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``, or a frontend has another width.
    """
    rates = linear_rates(drop_path_rate, prenet_depth + depth)

    def make(rates: list[float], final_norm: bool | None) -> Transformer:
        return Transformer(
            embed_dim,
            len(rates),
            num_heads,
            mlp_ratio=mlp_ratio,
            norm_first=norm_first,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            mlp_drop_rate=mlp_drop_rate,
            post_mlp_drop_rate=post_mlp_drop_rate,
            drop_path_rate=rates,
            layer_drop_rate=layer_drop_rate,
            layer_scale_init=layer_scale_init,
            rel_pos_grid=rel_pos_grid,
            final_norm=final_norm,
        )

    prenets = {modality: make(rates[:prenet_depth], False) for modality in frontends if prenet_depth}
    return Encoder(frontends, make(rates[prenet_depth:], final_norm), prenets, not norm_first, norm_eps)


def _padding_bias(padding_mask: Tensor, mask: TokenMask | None, num_prefix_tokens: int) -> Tensor:
    """Return the bias (N, 1, 1, P + K) float32: 0 for tokens to attend to, minus infinity for padding."""
    padding = padding_mask
    if mask is not None:
        padding = gather_tokens(padding.unsqueeze(-1), mask.ids_keep, mask.num_masks).squeeze(-1)
    padding = F.pad(padding, (num_prefix_tokens, 0))
    return torch.zeros(padding.shape, device=padding.device).masked_fill(padding, float("-inf"))[:, None, None]
