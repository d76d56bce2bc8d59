"""Frontend for speech: convolutions on the waveform and relative positions, data2vec 2.0 (arXiv:2212.07525).

The feature extractor is wav2vec 2.0's (arXiv:2006.11477) with a LayerNorm after every convolution. Positions are
relative: a stack of convolutions over the masked sequence, and a bias on attention logits that falls with distance
(ALiBi, arXiv:2108.12409, made symmetric).

B clips, S samples of the waveform, C channels of the extractor, T frames (tokens), D features

Deviation: padded frames are zeroed before each convolution of the positions, so that padding changes no real frame. In
the reference they leak into the frames before them; ``zero_padding="never"`` (1.0: "first") reproduces that.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.log_mel import LogMel
from d2v.nn.positions import ConvPositions, alibi_slopes
from d2v.nn.tokens import gather_tokens
from d2v.objective.targets import instance_norm
from d2v.types import TokenMask, num_frames
from d2v.values import ConvLayers, Depth, Epsilon, KernelSize, NumHeads, NumPrefixTokens, Rate, Width, buildable

ZeroPadding = Literal["every", "first", "never"]

# (channels, kernel size, stride): one frame every 320 samples (20 ms at 16 kHz), from 400 samples
CONV_LAYERS = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)


@buildable
class SpeechFrontend(Frontend):
    """Convolutional features, convolutional positions and ALiBi with a learned scale for every head.

    Args:
        embed_dim: features D.
        num_heads: attention heads of the encoder.
        conv_layers: (channels, kernel size, stride) of every convolution on the waveform, in samples.
        pos_depth: number of convolutions of the positions.
        pos_kernel_size: kernel size of these, frames.
        pos_groups: groups of these; must divide ``embed_dim``.
        alibi: whether attention logits get a bias that falls with distance.
        num_prefix_tokens: learned tokens before the frames; the distance to them is 0.
        input_drop_rate: dropout on the tokens that enter the prenet.
        zero_padding: where padded frames are zeroed: before "every" convolution of the positions, before the "first"
            (data2vec 1.0), or "never" (the reference's 2.0).
        mask_token: whether to add a learned token for masked frames (data2vec 1.0).
        norm_eps: epsilon of the LayerNorm before the projection.

    Raises:
        ValueError: ``pos_groups`` does not divide ``embed_dim``.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("convs", "conv_norms", "norm", "proj", "mask_token")
    extractor_parts: ClassVar[tuple[str, ...]] = ("convs", "conv_norms")  # the released recipes train the projection
    inputs_are: ClassVar[str] = (
        "waveforms (B, samples), mono, at config.yaml's inputs.sample_rate, each of zero mean and unit variance"
    )

    def __init__(
        self,
        embed_dim: Width,
        num_heads: NumHeads,
        conv_layers: ConvLayers = CONV_LAYERS,
        pos_depth: Depth = 5,
        pos_kernel_size: KernelSize = 19,
        pos_groups: Width = 16,
        alibi: bool = True,
        num_prefix_tokens: NumPrefixTokens = 0,
        input_drop_rate: Rate = 0.0,
        zero_padding: ZeroPadding = "every",
        mask_token: bool = False,
        norm_eps: Epsilon = 1e-5,
    ) -> None:
        super().__init__(embed_dim, num_prefix_tokens, input_drop_rate=input_drop_rate, mask_token=mask_token)
        if embed_dim % pos_groups:
            raise ValueError(f"pos_groups={pos_groups} does not divide embed_dim={embed_dim}; choose a divisor")
        self.conv_layers = tuple((int(c), int(k), int(s)) for c, k, s in conv_layers)
        self.zero_padding = zero_padding
        channels = [1, *(c for c, _, _ in self.conv_layers)]
        self.convs = nn.ModuleList(
            nn.Conv1d(channels[i], c, k, stride=s, bias=False) for i, (c, k, s) in enumerate(self.conv_layers)
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            nn.init.kaiming_normal_(conv.weight)
        self.conv_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        self.norm = nn.LayerNorm(channels[-1], eps=norm_eps)
        self.proj = nn.Linear(channels[-1], embed_dim)
        self.positions = ConvPositions(embed_dim, pos_depth, pos_kernel_size, pos_groups)
        self.alibi_scale = nn.Parameter(torch.ones(num_heads)) if alibi else None
        self.register_buffer("alibi_slopes", alibi_slopes(num_heads), persistent=False)
        self.alibi_slopes: Tensor
        self.log_mel = LogMel(self.conv_layers)

    def token_grid(self, inputs: Tensor) -> tuple[int]:
        """Return (T,), the number of frames of (B, S) waveforms."""
        return (num_frames(inputs.shape[1], self.conv_layers),)

    def example(self, batch_size: int = 1) -> Tensor:
        """Return zeros (B, 16000) float32."""
        return torch.zeros(batch_size, 16000)

    def embed(self, inputs: Tensor) -> Tensor:
        """Compute (B, T, D) features of all frames of (B, S) waveforms, without positions.

        Raises:
            ValueError: the waveforms are shorter than one frame.
        """
        if num_frames(inputs.shape[1], self.conv_layers) < 1:
            raise ValueError(
                f"waveforms of {inputs.shape[1]} samples hold no frame: raise min_seconds, or choose smaller "
                "kernels in conv_layers"
            )
        x = inputs.unsqueeze(1)  # (B, 1, S)
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = F.gelu(norm(conv(x).transpose(1, 2))).transpose(1, 2)  # (B, C, T)
        return self.proj(self.norm(x.transpose(1, 2)))

    @property
    def num_values(self) -> int:
        """Number of mel bands of a frame."""
        return self.log_mel.num_bands

    def values(self, inputs: Tensor) -> Tensor:
        """Return log-mels of what the convolutions see of every frame, each band normalised over a clip's frames."""
        return instance_norm(self.log_mel(inputs))

    def tokens(self, x_BTD: Tensor, mask: TokenMask | None, padding_mask: Tensor | None = None) -> Tensor:
        """Return frames with positions; the positions are computed on all frames, with masked ones set to zero."""
        padding = padding_mask if self.zero_padding == "every" else None
        if padding_mask is not None and self.zero_padding == "first":
            x_BTD = x_BTD.masked_fill(padding_mask.unsqueeze(-1), 0)
        if mask is None:
            return self.with_prefix(x_BTD + self.positions(x_BTD, padding))
        masked = x_BTD.repeat_interleave(mask.num_masks, dim=0).masked_fill(mask.mask.unsqueeze(-1), 0)  # (N, T, D)
        if padding is not None:
            padding = padding.repeat_interleave(mask.num_masks, dim=0)
        positions = gather_tokens(self.positions(masked, padding), mask.ids_keep)  # (N, K, D)
        return self.with_prefix(gather_tokens(x_BTD, mask.ids_keep, mask.num_masks) + positions)

    def attn_bias(self, num_tokens: int, mask: TokenMask | None) -> Tensor | None:
        """Return ALiBi: minus the distance in frames of the unmasked clip, times each head's slope and learned scale.

        The shape is (1 or N, heads, P + K, P + K); None without ALiBi.
        """
        if self.alibi_scale is None:
            return None
        if mask is None:
            places = torch.arange(num_tokens, device=self.alibi_slopes.device).unsqueeze(0)  # (1, T)
        else:
            places = mask.ids_keep  # (N, K)
        distances = (places.unsqueeze(2) - places.unsqueeze(1)).abs()  # (1 or N, K, K)
        distances = F.pad(distances, (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))
        slopes = self.alibi_slopes * self.alibi_scale.clamp(min=0)  # (heads,)
        return -distances.unsqueeze(1) * slopes.view(-1, 1, 1)
