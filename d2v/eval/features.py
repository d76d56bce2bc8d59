"""Extraction of features, labels and sample ids of a data set with a frozen encoder.

The vector of a sample is the mean of its patch tokens or its CLS token, read from any block or from the mean over all
blocks: data2vec's targets average blocks, and the last block is not always the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.types import NO_LETTER, Batch, EncoderOutput

Layers = Literal["last", "average", "concat", "all"] | int
Pool = Literal["mean", "mean_std", "cls", "none"]

_LAYER_NAMES = ("last", "average", "concat", "all")
_POOL_NAMES = ("mean", "mean_std", "cls", "none")


@dataclass(frozen=True)
class Features:
    """Features of a data set, on the CPU.

    Attributes:
        features: float32; (N, D), or (N, L, D) for all L blocks; ``pool="none"`` keeps a token axis before D. If
            samples have different numbers of tokens, these are concatenated: (sum of ``lengths``, D), or
            (sum of ``lengths``, L, D).
        labels: (N,) int64 class labels, or None if the batches had none.
        sample_ids: (N,) int64, index of each row's sample in the data set.
        skipped: samples that could not be read and were replaced, as "name: reason".
        lengths: (N,) int64, number of tokens of every sample, including prefix tokens, if these differ; else None.
    """

    features: Tensor
    labels: Tensor | None
    sample_ids: Tensor
    skipped: tuple[str, ...] = ()
    lengths: Tensor | None = None

    def by_id(self) -> Features:
        """Return the features sorted by sample id."""
        order = self.sample_ids.argsort(stable=True)
        if self.lengths is None:
            features = self.features[order]
        else:
            parts = self.features.split(self.lengths.tolist())
            features = torch.cat([parts[i] for i in order.tolist()])
        labels, lengths = (None if x is None else x[order] for x in (self.labels, self.lengths))
        return replace(self, features=features, labels=labels, sample_ids=self.sample_ids[order], lengths=lengths)


def extract(
    encoder: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Layers = "last",
    pool: Pool = "mean",
    device: torch.device | str | None = None,
) -> Features:
    """Encode every batch, unmasked, in eval and inference mode; the encoder's training flags are restored.

    Args:
        encoder: called as ``encoder(batch, return_layers=bool)``; returns an ``EncoderOutput``.
        batches: batches to encode; masks in them are ignored.
        layers: "last": the encoder's final features; "average": mean of the outputs of all blocks; "concat": these side
            by side, L * D features; "all": these stacked; or the index of a block, 0 for the first, negative from the
            end.
        pool: "mean" of the tokens that are not padding; "mean_std": this and their standard deviation side by side,
            2 D features; "cls": the first prefix token; "none": all tokens that are not padding, prefix tokens first.
        device: device of the encoder, to which batches are moved; default: that of its first parameter.

    Returns:
        The features of all samples, in the order of the batches.

    Raises:
        ValueError: ``layers`` or ``pool`` is unknown, the encoder lacks the block or, for ``pool="cls"``, a prefix
            token, there are no batches, or only some batches have labels.
    """
    parts = list(extract_batches(encoder, batches, layers=layers, pool=pool, device=device))
    skipped = tuple(entry for part in parts for entry in part.skipped)
    parts = [part for part in parts if len(part.sample_ids)]
    if not parts:
        raise ValueError("there were no batches to extract features from: is the data set, or its split, empty?")
    # Concatenated outside inference mode, because tensors made inside cannot be used in a backward pass.
    ids, labels = torch.cat([part.sample_ids for part in parts]), labels_of_all([part.labels for part in parts])
    lengths = [part.lengths for part in parts if part.lengths is not None]
    if len({n for part in lengths for n in part.tolist()}) > 1:
        ragged = [real_tokens(part.features, n) for part, n in zip(parts, lengths, strict=True)]
        return Features(torch.cat(ragged), labels, ids, skipped, torch.cat(lengths))
    return Features(torch.cat([part.features for part in parts]), labels, ids, skipped)


def extract_batches(
    encoder: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Layers = "last",
    pool: Pool = "mean",
    device: torch.device | str | None = None,
) -> Iterator[Features]:
    """Yield the features of each batch as they come; arguments as in :func:`extract`.

    A batch without a readable sample yields no rows. ``pool="none"`` pads samples to the longest of the batch;
    ``lengths`` says how many tokens are real.
    """
    _check_options(layers, pool)
    device = _device_of(encoder) if device is None else torch.device(device)
    before: Features | None = None
    with eval_mode(encoder):
        for batch in batches:
            now = _encode(encoder, batch, layers, pool, device)
            if before is not None:  # copied while an accelerator computes the next batch
                yield replace(before, features=before.features.cpu())
            before = now
        if before is not None:
            yield replace(before, features=before.features.cpu())


def _encode(encoder: nn.Module, batch: Batch, layers: Layers, pool: Pool, device: torch.device) -> Features:
    """Return the features of a batch, on the encoder's device."""
    if len(batch.sample_ids) == 0:  # no sample in it could be read
        return Features(torch.empty(0), None, batch.sample_ids.cpu(), batch.skipped)
    with torch.inference_mode():
        on_device = replace(batch, mask=None).to(device, non_blocking=True)
        out: EncoderOutput = encoder(on_device, return_layers=layers != "last")
        pooled = pool_tokens(_select_layers(out, layers), out.num_prefix_tokens, pool, on_device.padding_mask).float()
    lengths = None
    if pool == "none":
        padding = 0 if batch.padding_mask is None else batch.padding_mask.sum(1).cpu()
        lengths = torch.full((len(pooled),), pooled.shape[-2]) - padding
    labels = None if batch.labels is None else batch.labels.cpu()
    return Features(pooled, labels, batch.sample_ids.cpu(), batch.skipped, lengths)


def real_tokens(x: Tensor, lengths: Tensor) -> Tensor:
    """Drop padding at the end: (N, ..., T, D) to (sum of ``lengths``, ..., D)."""
    return torch.cat([tokens.movedim(-2, 0)[:n] for tokens, n in zip(x, lengths.tolist(), strict=True)])


def extract_frames(
    encoder: nn.Module, batches: Iterable[Batch], *, layers: Layers = "last", device: torch.device | str | None = None
) -> tuple[list[Tensor], Tensor, tuple[str, ...]]:
    """Return every token of every sample, without padding and prefix tokens; otherwise like :func:`extract`.

    Returns:
        (T_i, D) float32 on the CPU for every sample, the sample ids (N,) int64, and the skipped samples.
    """
    _check_options(layers, "none")
    if layers == "all":
        raise ValueError("layers=all: frames are of one width; choose last, average, concat or a block's index")
    device = _device_of(encoder) if device is None else torch.device(device)
    frames: list[Tensor] = []
    sample_ids: list[Tensor] = []
    skipped: list[str] = []
    with eval_mode(encoder), torch.inference_mode():
        for batch in batches:
            skipped.extend(batch.skipped)
            if len(batch.sample_ids) == 0:
                continue
            on_device = replace(batch, mask=None).to(device, non_blocking=True)
            out: EncoderOutput = encoder(on_device, return_layers=layers != "last")
            x = _select_layers(out, layers)[:, out.num_prefix_tokens :].float().cpu()
            for i in range(len(x)):
                frames.append(x[i] if batch.padding_mask is None else x[i][~batch.padding_mask[i]])
            sample_ids.append(batch.sample_ids)
    if not sample_ids:
        raise ValueError("there were no batches to extract frames from: is the data set, or its split, empty?")
    return [x.clone() for x in frames], torch.cat(sample_ids), tuple(skipped)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set eval mode within the block; afterwards every submodule has its own training flag again."""
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def pool_tokens(x: Tensor, num_prefix_tokens: int, pool: Pool, padding_mask: Tensor | None = None) -> Tensor:
    """Pool the tokens of each sample into one vector.

    Args:
        x: (N, ..., P + T, D) tokens, prefix tokens first.
        num_prefix_tokens: P.
        pool: as in :func:`extract`.
        padding_mask: (N, T) bool, True = padding, ignored; None if nothing is padded.

    Returns:
        (N, ..., D), or ``x`` itself for ``pool="none"``.

    Raises:
        ValueError: ``pool="cls"`` with P = 0, or the padding mask does not match the tokens.
    """
    if pool == "none":
        return x
    if pool == "cls":
        if num_prefix_tokens == 0:
            raise ValueError("pool=cls, but this encoder has no prefix token: set pool=mean")
        return x[..., 0, :]
    patches = x[..., num_prefix_tokens:, :].float()
    if padding_mask is None:
        mean = patches.mean(-2)
        return torch.cat([mean, patches.std(-2, correction=0)], dim=-1) if pool == "mean_std" else mean
    if padding_mask.shape != (x.shape[0], patches.shape[-2]):
        raise ValueError(
            f"padding mask of shape {tuple(padding_mask.shape)} for {x.shape[0]} samples of {patches.shape[-2]} tokens"
        )
    real = ~padding_mask.view(x.shape[0], *[1] * (x.ndim - 3), -1, 1)
    # where, not a product: padded positions may hold NaN, and NaN * 0 is NaN.
    count = real.sum(-2).clamp(min=1)
    mean = patches.where(real, 0).sum(-2) / count
    if pool == "mean":
        return mean
    variance = (patches - mean.unsqueeze(-2)).square().where(real, 0).sum(-2) / count
    return torch.cat([mean, variance.sqrt()], dim=-1)


def standardize(train_x: Tensor, val_x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise features with the training set's mean and variance, like scikit-learn's StandardScaler.

    Args:
        train_x: (N, D) float.
        val_x: (V, D) float.

    Returns:
        Both as float32. A feature that is constant on the training set is centred and not scaled.
    """
    train = train_x.double()
    mean, std = train.mean(0), train.std(0, correction=0)
    # A spread below float32's resolution is rounding noise, which must not be scaled up into a feature.
    std = torch.where(std > torch.finfo(torch.float32).eps * mean.abs(), std, 1.0)
    return ((train - mean) / std).float(), ((val_x.double() - mean) / std).float()


def check_probe_data(train_x: Tensor, train_y: Tensor, val_x: Tensor, val_y: Tensor) -> None:
    """Check features and labels of a probe.

    Raises:
        ValueError: features are not (N, D), labels are not (N,), a set is empty, numbers of features or samples
            differ, or values are not finite.
    """
    for name, x, y in (("training", train_x, train_y), ("validation", val_x, val_y)):
        if x.ndim != 2 or y.shape != x.shape[:1]:
            raise ValueError(
                f"a probe reads (N, D) features and (N,) labels, got {name} features of shape {tuple(x.shape)}"
                f" and labels of shape {tuple(y.shape)}"
            )
        if x.numel() == 0:
            raise ValueError(f"the {name} set is empty: features of shape {tuple(x.shape)}")
        finite = x.isfinite().all(1)
        if not finite.all():
            raise ValueError(
                f"{int((~finite).sum())} of {len(x)} {name} samples have NaN or infinite features:"
                " the encoder has diverged or overflowed; probe an earlier checkpoint, or extract in float32"
            )
    if train_x.shape[1] != val_x.shape[1]:
        raise ValueError(f"{train_x.shape[1]} training features, but {val_x.shape[1]} validation features")


def _check_options(layers: Layers, pool: Pool) -> None:
    if not (layers in _LAYER_NAMES or (isinstance(layers, int) and not isinstance(layers, bool))):
        raise ValueError(f"layers={layers!r}: choose one of {', '.join(_LAYER_NAMES)}, or a block's index")
    if pool not in _POOL_NAMES:
        raise ValueError(f"pool={pool!r}: choose one of {', '.join(_POOL_NAMES)}")


def _device_of(encoder: nn.Module) -> torch.device:
    parameter = next(encoder.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _select_layers(out: EncoderOutput, layers: Layers) -> Tensor:
    """Return the selected features (N, P + T, D), or (N, L, P + T, D) for all blocks."""
    if layers == "last":
        return out.x
    depth = len(out.hidden_states)
    if depth == 0:
        raise ValueError(f"layers={layers}, but this encoder returned no hidden states: set layers=last")
    if layers == "all":
        return torch.stack(out.hidden_states, dim=1)
    if layers == "concat":
        return torch.cat(out.hidden_states, dim=-1)
    if layers == "average":
        # In float32: a sum over many blocks loses bits in half precision.
        return torch.stack(out.hidden_states).float().mean(0)
    assert isinstance(layers, int)
    if not -depth <= layers < depth:
        raise ValueError(f"layers={layers}, but this encoder has {depth} blocks: choose {-depth} to {depth - 1}")
    return out.hidden_states[layers]


def labels_of_all(labels: Sequence[Tensor | None]) -> Tensor | None:
    """Return the labels of all batches, or None if none has any. Raises ValueError if only some have.

    Samples of several classes have rows of labels, (n, L), filled up with ``NO_LETTER`` to the longest of all batches.
    """
    present = [y for y in labels if y is not None]
    if present and len(present) < len(labels):
        raise ValueError(f"only {len(present)} of {len(labels)} batches have labels: label all samples or none")
    if present and present[0].ndim == 2:
        longest = max(y.shape[1] for y in present)
        present = [F.pad(y, (0, longest - y.shape[1]), value=NO_LETTER) for y in present]
    return torch.cat(present).cpu() if present else None
