"""Frontends for images: non-overlapping patches with fixed 2-d positions (data2vec 2.0, arXiv:2212.07525, sec. 4.1) or
relative ones (data2vec 1.0, arXiv:2202.03555, sec. 4.1).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.positions import RelativePositionBias, sincos_2d
from d2v.types import TokenMask
from d2v.values import Channels, ImageSize, NumHeads, NumPrefixTokens, Width, buildable


@buildable
class ImageFrontend(Frontend):
    """Patch embedding with sine-cosine positions and one CLS token.

    Args:
        embed_dim: features D, a multiple of 4.
        img_size: height and width of an image in pixels.
        patch_size: height and width of a patch in pixels; must divide ``img_size``.
        in_chans: colour channels.
        num_prefix_tokens: 1 for the CLS token; 0 for none.
        fixed_positions: whether patches get sine-cosine positions.
        mask_token: whether to add a learned token for masked patches (data2vec 1.0).

    Raises:
        ValueError: ``patch_size`` does not divide ``img_size``.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("proj",)
    inputs_are: ClassVar[str] = "images (B, C, H, W), normalised by config.yaml's inputs.mean and inputs.std"

    def __init__(
        self,
        embed_dim: Width,
        img_size: ImageSize = 224,
        patch_size: ImageSize = 16,
        in_chans: Channels = 3,
        num_prefix_tokens: NumPrefixTokens = 1,
        fixed_positions: bool = True,
        mask_token: bool = False,
    ) -> None:
        super().__init__(embed_dim, num_prefix_tokens, mask_token=mask_token)
        if img_size % patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not divide img_size={img_size}; "
                f"choose img_size={max(1, round(img_size / patch_size)) * patch_size} or another patch_size"
            )
        if fixed_positions and embed_dim % 4:
            raise ValueError(f"embed_dim={embed_dim}: 2-d sine-cosine positions need a multiple of 4")
        self.img_size = img_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))
        side = img_size // patch_size
        self.register_buffer("positions", sincos_2d((side, side), embed_dim) if fixed_positions else None)
        self.positions: Tensor | None

    def token_grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the numbers of patches per column and per row of (B, C, H, W) images."""
        return inputs.shape[-2] // self.patch_size, inputs.shape[-1] // self.patch_size

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros (B, C, H, W) float32."""
        return torch.zeros(batch_size, self.in_chans, self.img_size, self.img_size)

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed (B, C, H, W) images as (B, T, D) patch features with positions, row-major.

        Raises:
            ValueError: size or channels of the images differ from those of the frontend.
        """
        expected = (self.in_chans, self.img_size, self.img_size)
        if tuple(inputs.shape[1:]) != expected:
            raise ValueError(
                f"images of shape {tuple(inputs.shape[1:])} reached an encoder built for {expected} "
                "(in_chans, img_size, img_size)"
            )
        x_BTD = self.proj(inputs).flatten(2).transpose(1, 2)
        return x_BTD if self.positions is None else x_BTD + self.positions

    @property
    def patch_values(self) -> int:
        """Number of values of a patch, over all channels."""
        return self.in_chans * self.patch_size**2

    def patches(self, inputs: Tensor) -> Tensor:
        """Cut (B, C, H, W) images into (B, T, C * patch_size**2) pixel values, row-major."""
        return F.unfold(inputs, self.patch_size, stride=self.patch_size).transpose(1, 2)


@buildable
class BeitFrontend(ImageFrontend):
    """Patch embedding, CLS token and mask token of data2vec 1.0, as in BEiT (arXiv:2106.08254): no fixed positions.

    Args:
        embed_dim: features D.
        num_heads: attention heads of the encoder.
        img_size: height and width of an image in pixels.
        patch_size: height and width of a patch in pixels; must divide ``img_size``.
        in_chans: colour channels.
        shared_bias: whether all blocks share one bias of relative positions; else blocks have their own, or none.
        mask_token: whether there is a learned token for masked patches.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("proj", "prefix_tokens", "mask_token")
    extractor_parts: ClassVar[tuple[str, ...]] = ("proj",)

    def __init__(
        self,
        embed_dim: Width,
        num_heads: NumHeads,
        img_size: ImageSize = 224,
        patch_size: ImageSize = 16,
        in_chans: Channels = 3,
        shared_bias: bool = True,
        mask_token: bool = True,
    ) -> None:
        super().__init__(embed_dim, img_size, patch_size, in_chans, 1, fixed_positions=False, mask_token=mask_token)
        side = img_size // patch_size
        self.rel_pos = RelativePositionBias((side, side), num_heads) if shared_bias else None
        assert self.prefix_tokens is not None
        for parameter in (self.prefix_tokens, self.mask_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def attn_bias(self, num_tokens: int, mask: TokenMask | None) -> Tensor | None:
        """Return the bias (1, heads, 1 + T, 1 + T); with a mask, of visible patches, (N, heads, 1 + K, 1 + K)."""
        if self.rel_pos is None:
            return None
        bias = self.rel_pos()
        if mask is None:
            return bias
        rows = F.pad(mask.ids_keep + 1, (1, 0))  # (N, 1 + K), CLS first
        return bias[0][:, rows.unsqueeze(2), rows.unsqueeze(1)].transpose(0, 1)
