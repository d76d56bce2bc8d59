"""A d2v encoder for Hugging Face's Auto classes: data2vec 2.0 (arXiv:2212.07525) or 1.0 (arXiv:2202.03555).

This file needs torch and transformers only, and the names of its parameters are those of d2v. It is long because it is
whole: transformers copies it beside the weights, where there is no d2v to import from.

B samples, T tokens, P prefix (CLS) tokens, D features, H heads
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    ImageClassifierOutput,
    SequenceClassifierOutput,
)

from .configuration_d2v import D2VConfig


class Attention(nn.Module):
    """Self-attention of all heads."""

    def __init__(self, config: D2VConfig) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = config.num_heads, config.attn_drop_rate
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.proj_drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return (B, T, D); ``bias`` of the logits is broadcastable to (B, H, T, T), or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        drop_rate = self.drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, config: D2VConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.drop = nn.Dropout(config.mlp_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class LayerScale(nn.Module):
    """A learned factor for every feature."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return x * self.gamma


@lru_cache(maxsize=8)
def relative_positions(rows: int, columns: int) -> Tensor:
    """Return (1 + T, 1 + T) int64: which entry of a table holds the bias of two tokens, the CLS token first.

    One for every offset on the grid, then one from CLS to patches, one from patches to CLS, one from CLS to itself.
    """
    y, x = (c.flatten() for c in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    down, right = y[:, None] - y[None, :] + rows - 1, x[:, None] - x[None, :] + columns - 1
    offsets = down * (2 * columns - 1) + right
    num_offsets = (2 * rows - 1) * (2 * columns - 1)
    index = F.pad(offsets, (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = num_offsets, num_offsets + 1, num_offsets + 2
    return index


class RelativePositionBias(nn.Module):
    """A learned bias of attention logits for every offset on a grid of patches: BEiT (arXiv:2106.08254)."""

    def __init__(self, rows: int, columns: int, num_heads: int) -> None:
        super().__init__()
        self.grid = (rows, columns)
        self.table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1) + 3, num_heads))

    def forward(self) -> Tensor:
        """Return the bias, (1, H, 1 + T, 1 + T)."""
        index = relative_positions(*self.grid).to(self.table.device)
        return self.table[index].permute(2, 0, 1).unsqueeze(0)


class Block(nn.Module):
    """Self-attention and MLP, post-norm or pre-norm."""

    def __init__(self, config: D2VConfig, drop_path_rate: float) -> None:
        super().__init__()
        dim, init = config.embed_dim, config.layer_scale_init
        self.norm_first, self.layer_drop_rate = config.norm_first, config.layer_drop_rate
        self.drop_path_rate = drop_path_rate
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.post_mlp_drop = nn.Dropout(config.post_mlp_drop_rate)
        self.scale1, self.scale2 = (nn.Identity() if init is None else LayerScale(dim, init) for _ in range(2))
        grid = config.rel_pos_grid
        self.rel_pos = None if grid is None else RelativePositionBias(grid[0], grid[1], config.num_heads)

    def drop_path(self, x: Tensor) -> Tensor:
        """Set some samples to zero in training (stochastic depth)."""
        if not self.training or not self.drop_path_rate:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path_rate
        return x * keep / (1 - self.drop_path_rate)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return (B, T, D); ``bias`` of the attention logits may be None."""
        skipped = x
        if self.rel_pos is not None:
            own = self.rel_pos().to(x.dtype)
            bias = own if bias is None else bias + own
        if self.norm_first:
            x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), bias)))
            x = x + self.drop_path(self.scale2(self.post_mlp_drop(self.mlp(self.norm2(x)))))
        else:
            x = self.norm1(x + self.drop_path(self.scale1(self.attn(x, bias))))
            x = self.norm2(x + self.drop_path(self.scale2(self.post_mlp_drop(self.mlp(x)))))
        if self.training and self.layer_drop_rate:
            x = torch.where(torch.rand((), device=x.device) < self.layer_drop_rate, skipped, x)
        return x


class Trunk(nn.Module):
    """Blocks, and a norm after them or none."""

    def __init__(self, config: D2VConfig, drop_path_rates: list[float], final_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_path_rates)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps) if final_norm else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return (B, T, D) after the norm, and the hidden states: the input of the blocks and the output of each."""
        hidden_states = [x]
        for block in self.blocks:
            x = block(x, bias)
            hidden_states.append(x)
        return self.norm(x), tuple(hidden_states)


class Frontend(nn.Module):
    """Base class of frontends: tokens of one modality, their padding and relative positions.

    Abstract: a modality defines :meth:`embed`.

    Args:
        config: of the encoder.
        num_prefix_tokens: P, learned tokens before the sequence, the CLS token last.
        mask_token: whether there is a learned token for masked ones; only pretraining uses it.
    """

    def __init__(self, config: D2VConfig, num_prefix_tokens: int, mask_token: bool) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_prefix_tokens = num_prefix_tokens
        self.prefix_tokens = nn.Parameter(torch.zeros(num_prefix_tokens, dim)) if num_prefix_tokens else None
        self.mask_token = nn.Parameter(torch.zeros(dim)) if mask_token else None

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, T, D) with positions, and the padding mask (B, T) bool, True = padding, or None."""
        raise NotImplementedError("a frontend defines embed")

    def attn_bias(self, num_tokens: int) -> Tensor | None:
        """Return the bias of relative positions, broadcastable to (B, H, P + T, P + T), or None."""
        return None

    def forward(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, P + T, D), and the bias of attention logits: positions, minus infinity at padding."""
        x, padding = self.embed(inputs, attention_mask)
        bias = self.attn_bias(x.shape[1])
        bias = None if bias is None else bias.to(x.dtype)
        if padding is not None:
            hidden = F.pad(padding, (self.num_prefix_tokens, 0))[:, None, None]  # (B, 1, 1, P + T)
            unseen = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, float("-inf"))
            bias = unseen if bias is None else bias + unseen
        if self.prefix_tokens is not None:
            x = torch.cat([self.prefix_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x, bias


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Return (rows * columns, dim): positions on a grid; the first half encodes columns, the second rows."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    parts = []
    for coordinates in (columns, rows):
        angles = coordinates.flatten().double()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()


class ImageFrontend(Frontend):
    """Patches, with sine-cosine positions (2.0) or a bias of relative positions that all blocks share (1.0)."""

    def __init__(
        self,
        config: D2VConfig,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_prefix_tokens: int = 1,
        fixed_positions: bool = True,
        shared_bias: bool = False,
        mask_token: bool = False,
    ) -> None:
        super().__init__(config, num_prefix_tokens, mask_token)
        self.img_size = img_size
        side = img_size // patch_size
        self.proj = nn.Conv2d(in_chans, config.embed_dim, kernel_size=patch_size, stride=patch_size)
        self.register_buffer("positions", sincos_2d((side, side), config.embed_dim) if fixed_positions else None)
        self.rel_pos = RelativePositionBias(side, side, config.num_heads) if shared_bias else None

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return patch features of (B, C, H, W) images; images have no padding."""
        if inputs.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"images of {tuple(inputs.shape[-2:])} pixels, but the model reads {self.img_size} squared"
            )
        x = self.proj(inputs.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        return (x if self.positions is None else x + self.positions.to(x.dtype)), None

    def attn_bias(self, num_tokens: int) -> Tensor | None:
        """Return the bias of relative positions, (1, H, 1 + T, 1 + T), or None."""
        return None if self.rel_pos is None else self.rel_pos()


class SpectrogramFrontend(Frontend):
    """Patches of log-mel spectrograms of any length, with sine-cosine positions of time and mel bins."""

    def __init__(
        self,
        config: D2VConfig,
        num_mels: int = 128,
        patch_size: int = 16,
        max_frames: int = 12288,
        num_prefix_tokens: int = 1,
    ) -> None:
        super().__init__(config, num_prefix_tokens, mask_token=False)
        self.num_mels, self.max_frames = num_mels, max_frames
        self.proj = nn.Conv2d(1, config.embed_dim, kernel_size=patch_size, stride=patch_size)
        grid = (max_frames // patch_size, num_mels // patch_size)
        self.register_buffer("positions", sincos_2d(grid, config.embed_dim))
        self.positions: Tensor

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return patch features of (B, frames, mel bins) or (B, 1, frames, mel bins) spectrograms, without padding."""
        x = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs
        if x.shape[-1] != self.num_mels or x.shape[-2] > self.max_frames:
            raise ValueError(
                f"spectrograms of {tuple(x.shape[-2:])}, but the model reads up to {self.max_frames} frames of "
                f"{self.num_mels} mel bins"
            )
        x = self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        return x + self.positions[: x.shape[1]].to(x.dtype), None


class ConvPositions(nn.Module):
    """Convolutional positions: each convolution is followed by a LayerNorm and a GELU."""

    def __init__(self, dim: int, depth: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Map (B, T, D) frames to positions; frames of ``padding`` are set to zero before every convolution."""
        num_tokens = x.shape[1]
        for conv in self.convs:
            if padding is not None:
                x = x.masked_fill(padding.unsqueeze(-1), 0)
            x = conv(x.transpose(1, 2))[..., :num_tokens].transpose(1, 2)
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


class SpeechFrontend(Frontend):
    """Convolutions on the waveform, convolutional positions and, in 2.0, ALiBi with a learned scale for every head."""

    def __init__(
        self,
        config: D2VConfig,
        conv_layers: list[list[int]],
        pos_depth: int = 5,
        pos_kernel_size: int = 19,
        pos_groups: int = 16,
        alibi: bool = True,
        num_prefix_tokens: int = 0,
        input_drop_rate: float = 0.0,
        zero_padding: str = "every",
        mask_token: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(config, num_prefix_tokens, mask_token)
        self.conv_layers, self.zero_padding = conv_layers, zero_padding
        channels = [1, *(layer[0] for layer in conv_layers)]
        self.convs = nn.ModuleList(
            nn.Conv1d(channels[i], c, kernel, stride=stride, bias=False)
            for i, (c, kernel, stride) in enumerate(conv_layers)
        )
        self.conv_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        self.norm = nn.LayerNorm(channels[-1], eps=norm_eps)
        self.proj = nn.Linear(channels[-1], config.embed_dim)
        self.positions = ConvPositions(config.embed_dim, pos_depth, pos_kernel_size, pos_groups)
        self.num_heads = config.num_heads
        self.alibi_scale = nn.Parameter(torch.ones(config.num_heads)) if alibi else None

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames of clips with ``num_samples`` samples."""
        for _, kernel, stride in self.conv_layers:
            num_samples = (num_samples - kernel).div(stride, rounding_mode="floor") + 1
        return num_samples.clamp(min=0)

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return frames of (B, samples) waveforms of zero mean and unit variance; the mask has the same shape."""
        x = inputs.to(self.proj.weight.dtype).unsqueeze(1)
        for conv, norm in zip(self.convs, self.conv_norms):  # noqa: B905
            x = F.gelu(norm(conv(x).transpose(1, 2))).transpose(1, 2)
        x = self.proj(self.norm(x.transpose(1, 2)))  # (B, T, D)
        padding = None
        if attention_mask is not None:
            lengths = self.num_frames(attention_mask.long().sum(1))
            padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
            if self.zero_padding == "first":
                x = x.masked_fill(padding.unsqueeze(-1), 0)
        return x + self.positions(x, padding if self.zero_padding == "every" else None), padding

    def attn_bias(self, num_tokens: int) -> Tensor | None:
        """Return (1, H, P + T, P + T): minus distances in frames times slopes (ALiBi, arXiv:2108.12409), or None."""
        if self.alibi_scale is None:
            return None
        places = torch.arange(num_tokens, device=self.alibi_scale.device)
        distances = (places[:, None] - places[None, :]).abs()
        distances = F.pad(distances, (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))
        slopes = alibi_slopes(self.num_heads).to(self.alibi_scale) * self.alibi_scale.clamp(min=0)
        return (-distances * slopes.view(-1, 1, 1)).unsqueeze(0)


def alibi_slopes(num_heads: int) -> Tensor:
    """Return (H,): a geometric sequence; if H is no power of two, with every second slope of a finer one."""
    power = 2 ** math.floor(math.log2(num_heads))
    own = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor([*own, *between][:num_heads])


class TextFrontend(Frontend):
    """Embeddings of tokens and of their positions, and a LayerNorm."""

    def __init__(
        self,
        config: D2VConfig,
        vocab_size: int,
        max_positions: int = 512,
        pad_id: int = 1,
        drop_rate: float = 0.0,
        num_prefix_tokens: int = 0,
        input_drop_rate: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(config, num_prefix_tokens, mask_token=False)
        self.max_positions, self.pad_id = max_positions, pad_id
        self.token_embed = nn.Embedding(vocab_size, config.embed_dim, padding_idx=pad_id)
        self.pos_embed = nn.Embedding(max_positions + pad_id + 1, config.embed_dim, padding_idx=pad_id)
        self.norm = nn.LayerNorm(config.embed_dim, eps=norm_eps)
        self.drop = nn.Dropout(drop_rate)

    def embed(self, inputs: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return embeddings of (B, T) ids; without a mask, ``pad_id`` is padding."""
        if inputs.shape[1] > self.max_positions:
            raise ValueError(f"texts of {inputs.shape[1]} tokens, but the model reads {self.max_positions}")
        real = inputs != self.pad_id
        positions = real.cumsum(1) * real + self.pad_id
        x = self.drop(self.norm(self.token_embed(inputs) + self.pos_embed(positions)))
        return x, ~(real if attention_mask is None else attention_mask.bool())


FRONTENDS: dict[str, Any] = {
    "image": ImageFrontend,
    "speech": SpeechFrontend,
    "text": TextFrontend,
    "spectrogram": SpectrogramFrontend,
}
# Arguments for the inputs, by modality.
INPUTS = {"image": "pixel_values", "speech": "input_values", "text": "input_ids", "spectrogram": "input_values"}


class D2VPreTrainedModel(PreTrainedModel):
    """Base class of all models."""

    config_class = D2VConfig
    base_model_prefix = "encoder"
    _no_split_modules = ["Block"]  # noqa: RUF012


class D2VModel(D2VPreTrainedModel):
    """The encoder."""

    def __init__(self, config: D2VConfig) -> None:
        super().__init__(config)
        self.modality = config.modality
        self.input_drop_rate = config.frontend.get("input_drop_rate", 0.0)
        self.frontends = nn.ModuleDict({config.modality: FRONTENDS[config.modality](config, **config.frontend)})
        self.input_norms = nn.ModuleDict(
            {config.modality: nn.LayerNorm(config.embed_dim, eps=config.norm_eps)} if config.input_norm else {}
        )
        num_blocks = config.prenet_depth + config.depth
        rates = [config.drop_path_rate * i / max(1, num_blocks - 1) for i in range(num_blocks)]
        prenet_rates, trunk_rates = rates[: config.prenet_depth], rates[config.prenet_depth :]
        self.prenets = nn.ModuleDict({config.modality: Trunk(config, prenet_rates, False)} if prenet_rates else {})
        self.trunk = Trunk(config, trunk_rates, config.final_norm)
        self.main_input_name = INPUTS[config.modality]
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Features of images (B, C, H, W), waveforms (B, samples), spectrograms or token ids (B, tokens).

        Args:
            pixel_values: images.
            input_values: waveforms, each of zero mean and unit variance; or spectrograms, normalised.
            input_ids: token ids.
            attention_mask: 1 for samples or tokens, 0 for padding, in the shape of the inputs.
            output_hidden_states: also return the input of the blocks and the output of each.
            return_dict: False for a plain tuple.
            kwargs: ignored.

        Returns:
            last_hidden_state (B, P + T, D), the CLS token first where there is one.
        """
        given = {"pixel_values": pixel_values, "input_values": input_values, "input_ids": input_ids}
        inputs = given[self.main_input_name]
        if inputs is None:
            raise ValueError(f"this model reads {self.main_input_name}")
        x, bias = self.frontends[self.modality](inputs, attention_mask)
        if self.modality in self.input_norms:
            x = self.input_norms[self.modality](x)
        x = F.dropout(x, self.input_drop_rate, self.training)
        if self.modality in self.prenets:
            x, _ = self.prenets[self.modality](x, bias)
        x, hidden_states = self.trunk(x, bias)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutput(last_hidden_state=x, hidden_states=hidden_states if wanted else None)
        return output.to_tuple() if return_dict is False else output


class MeanPoolHead(nn.Module):
    """Head for images: mean of the patches, a LayerNorm and a linear layer."""

    def __init__(self, config: D2VConfig, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.head_norm_eps)
        self.drop = nn.Dropout(config.head_drop_rate)
        self.proj = nn.Linear(config.embed_dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C) of tokens (B, T, D)."""
        return self.proj(self.drop(self.norm(x.mean(dim=1))))


class ClsHead(nn.Module):
    """Head for spectrograms: a LayerNorm and a linear layer on the CLS token."""

    def __init__(self, config: D2VConfig, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.head_norm_eps)
        self.drop = nn.Dropout(config.head_drop_rate)
        self.proj = nn.Linear(config.embed_dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C) of prefix tokens (B, P, D), the CLS token last."""
        return self.proj(self.drop(self.norm(x[:, -1])))


class FirstTokenHead(nn.Module):
    """Head for texts: a linear layer, tanh and a linear layer on the first token."""

    def __init__(self, config: D2VConfig, num_outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.embed_dim, config.embed_dim)
        self.drop = nn.Dropout(config.head_drop_rate)
        self.proj = nn.Linear(config.embed_dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, C) of tokens (B, T, D)."""
        return self.proj(self.drop(torch.tanh(self.dense(self.drop(x[:, 0])))))


class FrameHead(nn.Module):
    """Head for speech: a linear layer on every frame."""

    def __init__(self, config: D2VConfig, num_outputs: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(config.head_drop_rate)
        num_layers = config.depth if config.head_layers == "concat" else 1
        self.proj = nn.Linear(num_layers * config.embed_dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, T, C) of tokens (B, T, D)."""
        return self.proj(self.drop(x))


class D2VForTask(D2VPreTrainedModel):
    """An encoder and a head on its tokens without the prefix tokens, or on these alone."""

    head_class: Any = None
    output_class: Any = None

    def __init__(self, config: D2VConfig) -> None:
        super().__init__(config)
        self.encoder = D2VModel(config)
        self.main_input_name = self.encoder.main_input_name
        num_outputs = config.vocab_size if self.head_class is FrameHead else config.num_labels
        self.head = self.head_class(config, int(num_outputs or 2))
        self.post_init()

    def loss(self, logits: Tensor, labels: Tensor, num_samples: Tensor | None) -> Tensor:
        """Return the cross entropy, or the squared error of a single output."""
        if self.config.num_labels == 1:
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))
        return F.cross_entropy(logits, labels.view(-1))

    def forward(self, *args: Any, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Return outputs of the encoder and the head, and the loss if there are labels."""
        wanted = kwargs.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        reads_layers = self.config.head_layers == "concat"
        out = self.encoder(*args, output_hidden_states=wanted or reads_layers, **kwargs)
        x = torch.cat(out.hidden_states[1:], dim=-1) if reads_layers else out.last_hidden_state
        num_prefix = self.encoder.frontends[self.encoder.modality].num_prefix_tokens
        logits = self.head(x[:, :num_prefix] if self.head_class is ClsHead else x[:, num_prefix:])
        loss = None
        if labels is not None:
            mask, inputs = kwargs.get("attention_mask"), kwargs.get(self.main_input_name)
            shape = torch.ones_like(inputs) if mask is None and inputs is not None else mask
            loss = self.loss(logits, labels, None if shape is None else shape.long().sum(1))
        hidden_states = out.hidden_states if wanted else None
        output = self.output_class(loss=loss, logits=logits, hidden_states=hidden_states)
        return output.to_tuple() if return_dict is False else output


class D2VForImageClassification(D2VForTask):
    """Classes of images."""

    head_class, output_class = MeanPoolHead, ImageClassifierOutput


class D2VForAudioClassification(D2VForTask):
    """Classes of sounds."""

    head_class, output_class = ClsHead, SequenceClassifierOutput


class D2VForSequenceClassification(D2VForTask):
    """Classes or scores of texts."""

    head_class, output_class = FirstTokenHead, SequenceClassifierOutput


class D2VForCTC(D2VForTask):
    """Letters of speech; the pad token is CTC's blank."""

    head_class, output_class = FrameHead, CausalLMOutput

    def loss(self, logits: Tensor, labels: Tensor, num_samples: Tensor | None) -> Tensor:
        """Return the CTC loss, the mean over letters; labels below 0 are padding."""
        real = labels >= 0
        frontend: Any = self.encoder.frontends[self.encoder.modality]
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        total = F.ctc_loss(
            log_probs,
            labels.clamp(min=0),
            frontend.num_frames(num_samples),
            real.sum(1),
            blank=self.config.pad_token_id or 0,
            reduction="sum",
            zero_infinity=True,
        )
        return total / real.sum()
