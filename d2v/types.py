"""Data types that the parts of d2v exchange: a batch with its masks, an encoder's output, a loss.

Shapes: B samples, M masks a sample, N = B*M masked views (sample-major: sample 0's M masks first), T tokens, K visible
tokens, P prefix (CLS) tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from d2v.values import Fraction, NonNegativeFloat, PositiveDepth, PositiveFloat

TargetNorm = Literal["instance", "layer", "batch"]
TeacherScope = Literal["encoder", "context", "transformer", "blocks"]
Negatives = Literal["sample", "batch"]

NO_LETTER = -1


def num_frames(num_samples: int, conv_layers: Sequence[Sequence[int]]) -> int:
    """Return the number of frames of a waveform after unpadded convolutions; 0 if it is too short for one.

    Args:
        num_samples: length of the waveform, samples.
        conv_layers: (channels, kernel size, stride) of every convolution; kernel and stride in samples of its input.
    """
    for _, kernel_size, stride in conv_layers:
        num_samples = max(0, (num_samples - kernel_size) // stride + 1)
    return num_samples


@dataclass(frozen=True)
class TokenMask:
    """N masks over T tokens, all with the same number of masked tokens.

    Attributes:
        mask: (N, T) bool, True = masked = to predict.
        ids_keep: (N, K) int64, the visible tokens of each row, ascending.
        ids_mask: (N, T - K) int64, the masked tokens of each row, ascending.
        ids_restore: (N, T) int64: token t of the full row is entry ``ids_restore[:, t]`` of ``[visible, masked]``.
        num_masks: M, masks per sample; row n masks sample n // M.
    """

    mask: Tensor
    ids_keep: Tensor
    ids_mask: Tensor
    ids_restore: Tensor
    num_masks: int

    @classmethod
    def from_bool(cls, mask: Tensor, num_masks: int = 1) -> TokenMask:
        """Build the index tensors of a boolean mask.

        Args:
            mask: (N, T) bool, True = masked; N a multiple of ``num_masks``.
            num_masks: masks per sample, M.

        Raises:
            ValueError: rows mask different numbers of tokens, or all, or none; or N is not a multiple of M.
        """
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(f"a mask is a 2-d bool tensor, got {mask.dtype} of shape {tuple(mask.shape)}")
        if num_masks < 1 or len(mask) == 0 or len(mask) % num_masks:
            raise ValueError(f"{mask.shape[0]} mask rows are not a multiple of num_masks={num_masks}")
        counts = mask.sum(1)
        num_masked, num_tokens = int(counts[0]), mask.shape[1]
        if not bool((counts == num_masked).all()):
            raise ValueError(f"all rows must mask the same number of tokens, got {sorted(set(counts.tolist()))}")
        if not 0 < num_masked < num_tokens:
            raise ValueError(f"{num_masked} of {num_tokens} tokens masked: keep at least one and mask at least one")
        ids_shuffle = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
        ids_keep, ids_mask = ids_shuffle.split([num_tokens - num_masked, num_masked], dim=1)
        return cls(mask, ids_keep.contiguous(), ids_mask.contiguous(), torch.argsort(ids_shuffle, dim=1), num_masks)

    @property
    def masked_fraction(self) -> float:
        """Share of the tokens that are masked."""
        return self.ids_mask.shape[1] / self.mask.shape[1]

    def _map(self, f: Callable[[Tensor], Tensor]) -> TokenMask:
        return TokenMask(f(self.mask), f(self.ids_keep), f(self.ids_mask), f(self.ids_restore), self.num_masks)


@dataclass(frozen=True)
class Batch:
    """Inputs, masks and labels of B samples: made by a collate function, read by a model.

    Attributes:
        modality: key of the frontend (and decoder) for ``inputs``, for example "image".
        inputs: images (B, C, H, W) float32, waveforms (B, S) float32, or token ids (B, T) int64.
        sample_ids: (B,) int64, index of each row's sample in the data set.
        mask: M masks of every sample; None if nothing is masked (evaluation).
        padding_mask: (B, T) bool, True = padding, ignore; None if nothing is padded.
        labels: (B,) int64 classes; (B, C) float32 shares of mixed classes; (B,) float32 scores; (B, L) int64 letters,
            padded with ``NO_LETTER``; or None.
        skipped: samples that could not be read and were replaced, as "name: reason".
        step_size: number of samples (in fine-tuning on transcripts, letters) in the whole optimizer step, over all
            devices and micro-batches; None if all micro-batches have the same number.
        num_read: documents read to make the batch, including skipped ones; None if each sample is one document.
    """

    modality: str
    inputs: Tensor
    sample_ids: Tensor
    mask: TokenMask | None = None
    padding_mask: Tensor | None = None
    labels: Tensor | None = None
    skipped: tuple[str, ...] = field(default=())
    step_size: int | None = None
    num_read: int | None = None

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            self.modality,
            f(self.inputs),
            f(self.sample_ids),
            None if self.mask is None else self.mask._map(f),
            None if self.padding_mask is None else f(self.padding_mask),
            None if self.labels is None else f(self.labels),
            self.skipped,
            self.step_size,
            self.num_read,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by the data loader)."""
        return self._map(lambda t: t.pin_memory())


@dataclass(frozen=True)
class EncoderOutput:
    """Output of an encoder.

    Attributes:
        x: (N, P + T', D) final features, prefix tokens first; T' is K under a mask, T without.
        hidden_states: (N, P + T', D) output of every layer of the trunk, or () if not requested.
        num_prefix_tokens: P.
    """

    x: Tensor
    hidden_states: tuple[Tensor, ...]
    num_prefix_tokens: int

    @property
    def patch_tokens(self) -> Tensor:
        """Return (N, T', D) final features without the prefix tokens."""
        return self.x[:, self.num_prefix_tokens :]

    @property
    def cls_token(self) -> Tensor:
        """Return (N, D) final features of the last prefix token, if there is one."""
        return self.x[:, self.num_prefix_tokens - 1]


@dataclass(frozen=True)
class LossOutput:
    """Loss of a forward pass, as sums, so that devices and micro-batches can be combined exactly.

    Attributes:
        loss_sum: scalar, the sum of all loss terms; the loss is ``loss_sum / count``.
        count: scalar int64, masked tokens in the batch.
        terms: each loss term's share of ``loss_sum``, detached.
        logged: scalars to log as ``train/<name>``, detached.
        watched: (n, D) features to monitor for collapse, detached float32, by name. "features": the student's mean
            visible token of each sample's first mask; "frontend": some of the frontend's output tokens.

    If a model has several modalities, the trainer logs and monitors each one separately: ``<name>/<modality>``.
    """

    loss_sum: Tensor
    count: Tensor
    terms: dict[str, Tensor]
    logged: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """Recipe of a modality's targets and loss.

    Attributes:
        average_top_k_layers: K, number of last layers of the trunk that are averaged into the targets.
        layer_norms: norms of each layer's output before averaging, in order.
        target_norms: norms of the average, in order.
        end_of_block_targets: average the outputs of whole layers instead of those of their MLPs before the residual.
        loss_scale: factor on the loss; None for 1 / sqrt(D).
        loss_beta: 0 for the squared error; above 0 for smooth L1, which is linear above it.
        cls_loss_weight: weight of the CLS token's loss (its mean over views) beside the mean over masked tokens.
        teacher_scope: part of the student that the teacher averages; the rest is copied. "encoder": everything;
            "context": everything after the local features; "transformer": everything but the frontend; "blocks": the
            trunk. Every scope includes the trunk, which modalities share.
        sample_mean_share: share of a sample's own mean over tokens that the norm "batch" keeps, from 0 to 1.
        contrastive_share: share of InfoNCE in the loss, from 0 to 1; the rest is the regression loss.
        contrastive_temperature: of InfoNCE's softmax over cosines.
        contrastive_negatives: "sample": the other targets of the same sample; "batch": targets of the micro-batch.
    """

    average_top_k_layers: PositiveDepth
    layer_norms: Sequence[TargetNorm]
    target_norms: Sequence[TargetNorm]
    end_of_block_targets: bool
    loss_scale: PositiveFloat | None
    loss_beta: NonNegativeFloat
    cls_loss_weight: NonNegativeFloat
    teacher_scope: TeacherScope
    sample_mean_share: Fraction = 1.0
    contrastive_share: Fraction = 0.0
    contrastive_temperature: PositiveFloat = 0.2
    contrastive_negatives: Negatives = "batch"

    def scale(self, embed_dim: int) -> float:
        """Return the factor on the loss of ``embed_dim`` features."""
        return embed_dim**-0.5 if self.loss_scale is None else self.loss_scale
