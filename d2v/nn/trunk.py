"""Trunks, the layers that all modalities share: base class, and the Transformer of data2vec 2.0 (arXiv:2212.07525).

N sequences, T tokens, D features
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from d2v.nn.block import Block, Layer
from d2v.values import Depth, Epsilon, FiniteFloat, NumHeads, Rate, Ratio, Width, buildable


class Trunk(nn.Module):
    """Base class of trunks, which map features of tokens to new features of the same tokens.

    Output t belongs to input token t: targets, heads and decoders rely on this. A trunk that works on other tokens,
    such as latents, has to map back to the input tokens at its end.

    Abstract: a trunk defines :meth:`layers`, :meth:`units` and :meth:`layer_of`.

    Args:
        embed_dim: features D.
        depth: number of layers that :meth:`layers` yields; targets come from these.

    Attributes:
        norm: norm of the last layer's output.
    """

    norm: nn.Module

    def __init__(self, embed_dim: int, depth: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.depth = depth

    def layers(self, x: Tensor, attn_bias: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the layers, one at each step of the iteration.

        Args:
            x: (N, T, D) features.
            attn_bias: bias of the attention logits, broadcastable to (N, heads, T, T); or None.

        Yields:
            The layer's output and its MLP's output before the residual, both (N, T, D).
        """
        raise NotImplementedError("a trunk defines layers")

    def units(self) -> Sequence[Layer]:
        """Return the layers that FSDP shards, and activation checkpointing recomputes, one at a time."""
        raise NotImplementedError("a trunk defines units")

    def layer_of(self, name: str) -> int:
        """Return the index of the layer of a parameter, from 0; ``depth`` for parameters after the last layer."""
        raise NotImplementedError("a trunk defines layer_of")

    def init_weights(self) -> None:
        """Initialise the weights; an encoder calls this for all of its trunks after building them."""

    def forward(self, x: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """Run all layers and the norm: (N, T, D) -> (N, T, D)."""
        output = x
        for output, _ in self.layers(x, attn_bias):  # noqa: B007  # only the last output is used
            pass
        return self.norm(output)


@buildable
class Transformer(Trunk):
    """Transformer blocks, with a final norm if they are pre-norm.

    Args:
        embed_dim: features D.
        depth: blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden width of the MLPs divided by ``embed_dim``.
        norm_first: pre-norm blocks instead of post-norm (all released models are post-norm).
        norm_eps: epsilon of the LayerNorms.
        drop_rate: dropout after attention projections.
        attn_drop_rate: dropout on attention weights.
        mlp_drop_rate: dropout inside MLPs.
        post_mlp_drop_rate: dropout on MLP outputs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first; or one rate for each.
        layer_drop_rate: probability of skipping a block for a batch, the same for all blocks.
        layer_scale_init: initial value of layer scale on the blocks' branches; None for no layer scale.
        rel_pos_grid: (rows, columns) of patches, for a bias of relative positions in every block; None for none.
        final_norm: whether a LayerNorm follows the last block; None: only if blocks are pre-norm.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(
        self,
        embed_dim: Width,
        depth: Depth,
        num_heads: NumHeads,
        *,
        mlp_ratio: Ratio = 4.0,
        norm_first: bool = False,
        norm_eps: Epsilon = 1e-6,
        drop_rate: Rate = 0.0,
        attn_drop_rate: Rate = 0.0,
        mlp_drop_rate: Rate = 0.0,
        post_mlp_drop_rate: Rate = 0.0,
        drop_path_rate: Rate | Sequence[Rate] = 0.0,
        layer_drop_rate: Rate = 0.0,
        layer_scale_init: FiniteFloat | None = None,
        rel_pos_grid: tuple[Width, Width] | None = None,
        final_norm: bool | None = None,
    ) -> None:
        super().__init__(embed_dim, depth)
        if embed_dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide embed_dim={embed_dim}; choose a number of heads that does"
            )
        rates = linear_rates(drop_path_rate, depth) if isinstance(drop_path_rate, float | int) else drop_path_rate
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                norm_first=norm_first,
                norm_eps=norm_eps,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
                mlp_drop_rate=mlp_drop_rate,
                post_mlp_drop_rate=post_mlp_drop_rate,
                drop_path_rate=rate,
                layer_drop_rate=layer_drop_rate,
                layer_scale_init=layer_scale_init,
                rel_pos_grid=None if rel_pos_grid is None else (rel_pos_grid[0], rel_pos_grid[1]),
            )
            for rate in rates
        )
        has_norm = norm_first if final_norm is None else final_norm
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if has_norm else nn.Identity()

    def layers(self, x: Tensor, attn_bias: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the blocks, one at each step of the iteration (:meth:`Trunk.layers`)."""
        for block in self.blocks:
            x, mlp_output = block(x, attn_bias)
            yield x, mlp_output

    def units(self) -> list[Block]:
        """Return the blocks."""
        return list(self.blocks)  # type: ignore[arg-type]  # they are blocks

    def layer_of(self, name: str) -> int:
        """Return the index of the block of ``blocks.<index>.<...>``; ``depth`` for the norm."""
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) if part == "blocks" else self.depth

    def init_weights(self) -> None:
        """Initialise linear layers with N(0, .02) weights and zero biases, as BERT and the reference."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def linear_rates(last: float, count: int) -> list[float]:
    """Return ``count`` rates that grow linearly from 0 to ``last``."""
    rates: list[float] = torch.linspace(0, last, count, device="cpu").tolist()
    return rates


def units(model: nn.Module) -> Iterator[Layer]:
    """Return the units of all trunks in a model."""
    for module in model.modules():
        if isinstance(module, Trunk):
            yield from module.units()


def checkpoint_activations(model: nn.Module) -> None:
    """Turn on activation checkpointing: layers keep only their inputs and are recomputed in the backward pass."""
    for unit in units(model):
        unit.checkpointing = True
