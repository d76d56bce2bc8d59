"""Heads for fine-tuning, one for each kind of output, and the model of an encoder and a head.

data2vec 2.0 (arXiv:2212.07525), sec. 4: images are classified from the mean of their patch tokens, texts from their
first token, and speech is transcribed frame by frame.

B samples, T tokens, P prefix tokens, D features, L layers of the trunk, C outputs
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.encoder import Encoder
from d2v.types import Batch, EncoderOutput
from d2v.values import Epsilon, Fraction, PositiveInt, Rate, Width, buildable


class PooledHead(nn.Module):
    """Base class of heads on one vector a sample: LayerNorm, dropout, linear layer; :meth:`classify`."""

    def __init__(self, embed_dim: Width, num_outputs: Width, norm_eps: Epsilon = 1e-6, drop_rate: Rate = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(embed_dim, num_outputs)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def classify(self, pooled: Tensor) -> Tensor:
        """Return (B, C) outputs of (B, D) vectors."""
        return self.proj(self.drop(self.norm(pooled)))


@buildable
class MeanPoolHead(PooledHead):
    """Head for images: mean of the patch tokens, LayerNorm, linear layer; output (B, C)."""

    def forward(self, out: EncoderOutput, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, C) outputs; padded tokens are ignored."""
        x = out.patch_tokens
        if padding_mask is None:
            return self.classify(x.mean(dim=1))
        real = ~padding_mask.unsqueeze(-1)
        return self.classify((x * real).sum(dim=1) / real.sum(dim=1))


@buildable
class FirstTokenHead(nn.Module):
    """Head for texts, as RoBERTa's, on the first token: dropout, linear, tanh, dropout, linear; output (B, C)."""

    def __init__(self, embed_dim: Width, num_outputs: Width, drop_rate: Rate = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(embed_dim, num_outputs)
        for layer in (self.dense, self.proj):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, out: EncoderOutput, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, C) outputs."""
        return self.proj(self.drop(torch.tanh(self.dense(self.drop(out.patch_tokens[:, 0])))))


@buildable
class FrameHead(nn.Module):
    """Head for speech: dropout and a linear layer on every frame; output (B, T, C).

    Args:
        embed_dim: features of a frame that it reads: D, or L * D of all layers.
        num_outputs: C.
        drop_rate: dropout on the features.
        layers: "last": the encoder's final features; "concat": the outputs of all layers of the trunk side by side, as
            for probes. The last layer of a pretrained encoder is specialised in predictions.
    """

    def __init__(
        self,
        embed_dim: Width,
        num_outputs: Width,
        drop_rate: Rate = 0.0,
        layers: Literal["last", "concat"] = "last",
    ) -> None:
        super().__init__()
        self.layers = layers
        self.drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(embed_dim, num_outputs)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, out: EncoderOutput, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, T, C) outputs; ignore those of padding."""
        if self.layers == "last":
            return self.proj(self.drop(out.patch_tokens))
        return self.proj(self.drop(torch.cat(out.hidden_states, dim=-1)[:, out.num_prefix_tokens :]))


def reads_layers(head: nn.Module | None) -> bool:
    """Return whether a head reads ``hidden_states``, the output of every layer of the trunk."""
    return getattr(head, "layers", "last") != "last"


@buildable
class FeatureMask(nn.Module):
    """Zeroing of random spans of time and of channels in training: wav2vec 2.0 (arXiv:2006.11477), sec. 4.3.

    Every frame (channel) starts a span with probability ``prob / length``; spans may overlap. They are drawn on the
    device, from torch's generator.

    Args:
        time_prob: expected share of frames in spans, overlaps counted twice.
        time_length: frames of a span.
        channel_prob: expected share of channels in spans, overlaps counted twice.
        channel_length: channels of a span.
    """

    def __init__(
        self,
        time_prob: Fraction = 0.0,
        time_length: PositiveInt = 5,
        channel_prob: Fraction = 0.0,
        channel_length: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.time_prob, self.time_length = time_prob, time_length
        self.channel_prob, self.channel_length = channel_prob, channel_length

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return (B, T, D) features with spans set to zero; unchanged in eval mode."""
        if not self.training:
            return x_BTD
        num_samples, num_tokens, num_features = x_BTD.shape
        if self.time_prob:
            spans = _spans(num_samples, num_tokens, self.time_prob, self.time_length, x_BTD.device)
            x_BTD = x_BTD.masked_fill(spans.unsqueeze(2), 0)
        if self.channel_prob:
            spans = _spans(num_samples, num_features, self.channel_prob, self.channel_length, x_BTD.device)
            x_BTD = x_BTD.masked_fill(spans.unsqueeze(1), 0)
        return x_BTD


def _spans(num_rows: int, size: int, prob: float, length: int, device: torch.device) -> Tensor:
    """Return (num_rows, size) bool, True in spans."""
    starts = (torch.rand(num_rows, size, device=device) < prob / length).float()
    return F.max_pool1d(F.pad(starts, (length - 1, 0)), length, stride=1).bool()


@buildable
class FinetunedModel(nn.Module):
    """An encoder and a head on its features.

    Args:
        encoder: pretrained or fresh; it is trained together with the head.
        head: module that reads the encoder's output.
        train_frontend: whether the layers of local features (patches, convolutions, embeddings) are trained; the
            released recipes for speech freeze the convolutions.
        feature_mask: applied to local features in training, or None.
    """

    def __init__(
        self, encoder: Encoder, head: nn.Module, train_frontend: bool = True, feature_mask: FeatureMask | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        if not train_frontend:
            for modality in encoder.frontends:
                frontend = encoder.frontend(modality)
                for name in frontend.extractor_parts or frontend.local_parts:
                    frontend.get_submodule(name).requires_grad_(False)
        self.feature_mask = feature_mask

    def forward(self, batch: Batch, train_encoder: bool = True) -> Tensor:
        """Return the head's output.

        Args:
            batch: inputs of one modality; the mask is ignored.
            train_encoder: False to train only the head.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_encoder):
            features_BTD = self.encoder.frontend(batch.modality).embed(batch.inputs)
            if self.feature_mask is not None:
                features_BTD = self.feature_mask(features_BTD)
            out = self.encoder.encode(
                batch.modality,
                features_BTD,
                padding_mask=batch.padding_mask,
                return_layers=reads_layers(self.head),
            )
        return self.head(out, batch.padding_mask)
