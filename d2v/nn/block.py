"""Transformer block of data2vec, which also returns the MLP's output, from which targets are made."""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from d2v.nn.attention import Attention
from d2v.nn.positions import RelativePositionBias


class Layer(nn.Module):
    """Base class of a trunk's layers, the units of FSDP and of activation checkpointing.

    Abstract: a subclass defines :meth:`compute`.

    Attributes:
        checkpointing: whether a training step keeps only the layer's inputs and recomputes the rest in the backward
            pass, with the same random numbers (arXiv:1604.06174); set by
            :func:`d2v.nn.trunk.checkpoint_activations`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False

    def forward(self, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: (N, T, D) features.
            inputs: other arguments of :meth:`compute`.

        Returns:
            The layer's output and the MLP's output before dropout, residual and norm, both (N, T, D).
        """
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(self.compute, x, *inputs, use_reentrant=False)
        return self.compute(x, *inputs)

    def compute(self, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layer without checkpointing; arguments and result of :meth:`forward`."""
        raise NotImplementedError("a layer defines compute")


class Block(Layer):
    """Self-attention and MLP, post-norm as in all released models, or pre-norm.

    Args:
        dim: features D.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: hidden width of the MLP divided by ``dim``.
        norm_first: False: ``x = norm1(x + attn(x)); x = norm2(x + mlp(x))`` (released models).
            True: ``x = x + attn(norm1(x)); x = x + mlp(norm2(x))``.
        norm_eps: epsilon of the LayerNorms.
        drop_rate: dropout after the attention's projection.
        attn_drop_rate: dropout on attention weights.
        mlp_drop_rate: dropout inside the MLP.
        post_mlp_drop_rate: dropout on the MLP's output, before the residual is added.
        drop_path_rate: probability of dropping either branch for a sample.
        layer_drop_rate: probability of skipping the whole block for a batch (LayerDrop, arXiv:1909.11556).
        layer_scale_init: initial value of layer scale on both branches (arXiv:2103.17239); None for no layer scale.
        rel_pos_grid: (rows, columns) of patches after a CLS token, for a bias of relative positions; None for none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_first: bool = False,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        post_mlp_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_drop_rate: float = 0.0,
        layer_scale_init: float | None = None,
        rel_pos_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.layer_drop_rate = layer_drop_rate
        self.attn = Attention(dim, num_heads, attn_drop_rate, drop_rate)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=mlp_drop_rate)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.post_mlp_drop = nn.Dropout(post_mlp_drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale_init is None else LayerScale(dim, layer_scale_init) for _ in range(2)
        )
        self.rel_pos = None if rel_pos_grid is None else RelativePositionBias(rel_pos_grid, num_heads)

    def compute(self, x: Tensor, attn_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Run the block.

        Args:
            x: (N, T, D) features.
            attn_bias: bias of the attention logits, broadcastable to (N, heads, T, T); or None.

        Returns:
            The block's output and the MLP's output before dropout, residual and norm, both (N, T, D).
        """
        skipped = x
        if self.rel_pos is not None:
            attn_bias = self.rel_pos() if attn_bias is None else attn_bias + self.rel_pos()
        if self.norm_first:
            x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), attn_bias)))
            mlp_output = self.mlp(self.norm2(x))
            x = x + self.drop_path(self.scale2(self.post_mlp_drop(mlp_output)))
        else:
            x = self.norm1(x + self.drop_path(self.scale1(self.attn(x, attn_bias))))
            mlp_output = self.mlp(x)
            x = self.norm2(x + self.drop_path(self.scale2(self.post_mlp_drop(mlp_output))))
        if self.training and self.layer_drop_rate:
            # A skipped block is computed, too: every rank gets all gradients (zeros here), and no host sync is needed.
            x = torch.where(torch.rand((), device=x.device) < self.layer_drop_rate, skipped, x)
        return x, mlp_output
