"""Decoders, from visible tokens to predictions at masked ones: the convolutions of data2vec 2.0 (arXiv:2212.07525,
sec. 3.2) and the Transformer of masked autoencoders (arXiv:2111.06377).

N views, T tokens on a grid, K visible, D encoder features, E decoder features
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.positions import sincos_2d
from d2v.nn.tokens import gather_tokens
from d2v.nn.trunk import Transformer
from d2v.types import TokenMask
from d2v.values import (
    Channels,
    Depth,
    ImageSize,
    KernelSize,
    NonNegativeFloat,
    NumHeads,
    PositiveDepth,
    PositiveFloat,
    Rate,
    Ratio,
    Width,
    buildable,
)


class Decoder(nn.Module):
    """Base class of decoders: features at masked tokens, and predictions from these.

    Abstract: a decoder defines :meth:`features` and sets ``proj``.

    Args:
        decoder_dim: features E.

    Attributes:
        proj: layers from the features to predictions.
    """

    proj: nn.Module

    def __init__(self, decoder_dim: int) -> None:
        super().__init__()
        self.decoder_dim = decoder_dim
        self.value_head: nn.Linear | None = None

    def add_value_head(self, num_values: int) -> None:
        """Add a linear layer to V further outputs: input values of a masked token."""
        self.value_head = nn.Linear(self.decoder_dim, num_values)

    def forward(self, x_NKD: Tensor, mask: TokenMask, grid: tuple[int, ...]) -> Tensor:
        """Return predictions at the masked tokens, (N, T - K, outputs of ``proj``, + V), ordered as ``mask.ids_mask``.

        Args:
            x_NKD: (N, K, D) encoded visible tokens, without prefix tokens.
            mask: N masks over T tokens.
            grid: shape of the T tokens.
        """
        x = self.features(x_NKD, mask, grid)
        return self.proj(x) if self.value_head is None else torch.cat([self.proj(x), self.value_head(x)], dim=-1)

    def features(self, x_NKD: Tensor, mask: TokenMask, grid: tuple[int, ...]) -> Tensor:
        """Return the decoder's features at the masked tokens, (N, T - K, E); arguments as in :meth:`forward`."""
        raise NotImplementedError("a decoder defines features")


class ConvDecoder(Decoder):
    """Base class of convolutional decoders: visible tokens on their grid, noise at masked ones, then convolutions.

    A layer is a convolution, a LayerNorm without affine and a GELU, with a residual wherever shapes agree. Features
    stay in (N, *grid, E) order: convolutions are channels-last, and the norm needs no transposes.

    Args:
        embed_dim: encoder features D.
        decoder_dim: decoder features E.
        depth: number of convolutions.
        kernel_size: size of a kernel in tokens, odd.
        groups: groups of every convolution; must divide D and E.
        mask_noise_std: standard deviation of the noise at masked tokens.
        input_drop_rate: dropout on the visible tokens.
        residual: whether layers have a residual connection.
        proj_depth: number of linear layers from E to D features, with GELUs in between.
        proj_ratio: hidden features of these divided by ``decoder_dim``.
        proj_init_std: standard deviation of their initial weights, with zero biases; None for PyTorch's default.

    Raises:
        ValueError: the kernel is even, or ``groups`` does not divide D and E.
    """

    conv: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]

    def __init__(
        self,
        embed_dim: Width,
        decoder_dim: Width = 384,
        depth: PositiveDepth = 6,
        kernel_size: KernelSize = 3,
        groups: Width = 16,
        mask_noise_std: NonNegativeFloat = 0.01,
        input_drop_rate: Rate = 0.0,
        residual: bool = True,
        proj_depth: PositiveDepth = 1,
        proj_ratio: Ratio = 2.0,
        proj_init_std: PositiveFloat | None = None,
    ) -> None:
        super().__init__(decoder_dim)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd; try {kernel_size + 1}")
        if embed_dim % groups or decoder_dim % groups:
            raise ValueError(
                f"groups={groups} must divide embed_dim={embed_dim} and decoder_dim="
                f"{decoder_dim}; set groups={math.gcd(embed_dim, decoder_dim)} or a divisor of it"
            )
        self.mask_noise_std = mask_noise_std
        self.residual = residual
        self.input_drop = nn.Dropout(input_drop_rate)
        self.convs = nn.ModuleList(
            self.conv(
                embed_dim if i == 0 else decoder_dim, decoder_dim, kernel_size, padding=kernel_size // 2, groups=groups
            )
            for i in range(depth)
        )
        widths = [decoder_dim, *[int(decoder_dim * proj_ratio)] * (proj_depth - 1), embed_dim]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1]) if proj_depth > 1 else layers[0]
        if proj_init_std is not None:
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=proj_init_std)
                    nn.init.zeros_(layer.bias)

    def features(self, x_NKD: Tensor, mask: TokenMask, grid: tuple[int, ...]) -> Tensor:
        """Return the output of the last convolution at the masked tokens, (N, T - K, E)."""
        num_masked = mask.ids_mask.shape[1]
        noise = torch.randn(len(x_NKD), num_masked, x_NKD.shape[2], dtype=x_NKD.dtype, device=x_NKD.device).mul_(
            self.mask_noise_std
        )
        x = gather_tokens(torch.cat([self.input_drop(x_NKD), noise], dim=1), mask.ids_restore)  # (N, T, D)
        x = x.unflatten(1, grid)  # (N, *grid, D)
        for conv in self.convs:
            y = conv(x.movedim(-1, 1)).movedim(1, -1)  # (N, *grid, E)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x.to(y.dtype) + y if self.residual and x.shape == y.shape else y
        return gather_tokens(x.flatten(1, -2), mask.ids_mask)


@buildable
class ConvDecoder1d(ConvDecoder):
    """Convolutional decoder for sequences: speech and text."""

    conv = nn.Conv1d


@buildable
class ConvDecoder2d(ConvDecoder):
    """Convolutional decoder for 2-d grids: images and spectrograms."""

    conv = nn.Conv2d


@buildable
class PixelDecoder(Decoder):
    """Small Transformer over all patches, with mask tokens for those that are not visible: MAE (arXiv:2111.06377).

    Args:
        embed_dim: encoder features D.
        img_size: height and width of an image in pixels.
        patch_size: height and width of a patch in pixels.
        in_chans: colour channels.
        decoder_dim: features E, a multiple of 4.
        depth: number of pre-norm blocks.
        num_heads: attention heads; must divide ``decoder_dim``.

    Raises:
        ValueError: ``decoder_dim`` is not a multiple of 4, or ``num_heads`` does not divide it.
    """

    def __init__(
        self,
        embed_dim: Width,
        img_size: ImageSize = 224,
        patch_size: ImageSize = 16,
        in_chans: Channels = 3,
        decoder_dim: Width = 512,
        depth: Depth = 8,
        num_heads: NumHeads = 16,
    ) -> None:
        super().__init__(decoder_dim)
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        if decoder_dim % 4:
            raise ValueError(f"decoder_dim={decoder_dim}: positions need a multiple of 4")
        if decoder_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide decoder_dim={decoder_dim}; choose one that does")
        side = img_size // patch_size
        self.embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos_2d((side, side), decoder_dim))
        self.positions: Tensor
        self.trunk = Transformer(decoder_dim, depth, num_heads, norm_first=True)
        self.proj = nn.Linear(decoder_dim, in_chans * patch_size**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def features(self, x_NKD: Tensor, mask: TokenMask, grid: tuple[int, ...]) -> Tensor:
        """Return the output of the trunk at the masked tokens, (N, T - K, E)."""
        x = self.embed(x_NKD)
        hidden = self.mask_token.to(x.dtype).expand(len(x), mask.ids_mask.shape[1], -1)
        x = gather_tokens(torch.cat([x, hidden], dim=1), mask.ids_restore) + self.positions  # (N, T, E)
        return gather_tokens(self.trunk(x), mask.ids_mask)
