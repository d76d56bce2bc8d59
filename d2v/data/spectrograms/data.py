"""``SpectrogramData``: spectrograms of recordings and their batches, the interface of such data to the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.contents import distinct
from d2v.data.datasets import EqualSamples, EvalCollate, EvalSamples, PretrainSamples
from d2v.data.labelled import FinetuneSet, part
from d2v.data.spectrograms.augment import AugmentedView, SoundAugment
from d2v.data.spectrograms.batches import MODALITY, SpectrogramView
from d2v.data.spectrograms.filter_bank import FilterBank
from d2v.data.spectrograms.measures import SpectrogramMeasures
from d2v.data.speech.clips import AudioClips
from d2v.data.speech.data import report_left_out
from d2v.values import (
    FiniteFloat,
    Fraction,
    ImageSize,
    NumFrames,
    PositiveFloat,
    PositiveFraction,
    SampleRate,
    Seconds,
    Width,
)

Crop = Literal["start", "random"]


class SpectrogramOptions(TypedDict, total=False):
    """Options of every factory, with their ranges; meaning and defaults are those of :class:`SpectrogramData`."""

    sample_rate: SampleRate
    num_frames: NumFrames
    num_mels: Width
    patch_size: ImageSize
    mean: FiniteFloat
    std: PositiveFloat
    crop: Crop
    min_seconds: Seconds
    max_bad_fraction: Fraction


@dataclass(frozen=True, kw_only=True)
class SpectrogramData(EqualSamples):
    """Spectrograms of recordings and their batches for pretraining and evaluation.

    Attributes:
        train: recordings to pretrain on.
        probe_train: labelled recordings to train probes on, or None.
        val: labelled recordings to evaluate probes on, or None. With groups and without ``val``, every group of
            ``probe_train`` is held out in turn.
        sample_rate: Hz; other recordings are resampled.
        num_frames: frames of every spectrogram, of 10 ms: shorter recordings are padded, longer ones cut.
        num_mels: mel bins.
        patch_size: frames and mel bins of a token.
        mean: of log energies; AudioSet's by default.
        std: of log energies; values are divided by twice as much.
        crop: where a longer recording is cut in training, at its "start" or at "random".
        min_seconds: shorter recordings are left out of training.
        max_bad_fraction: highest tolerated share of recordings that cannot be read.

    Raises:
        ValueError: sizes are no multiples of ``patch_size``.
        TooManyBadSamples: more recordings cannot be read than ``max_bad_fraction`` allows.
    """

    modality: ClassVar[str] = MODALITY
    input_keys: ClassVar[tuple[str, ...]] = ("sample_rate", "num_frames", "num_mels", "patch_size", "mean", "std")
    input_name: ClassVar[str] = "log-mel features"
    eval_batch_size: ClassVar[int] = 32

    train: AudioClips
    probe_train: AudioClips | None = None
    val: AudioClips | None = None
    sample_rate: int = 16000
    num_frames: int = 1024
    num_mels: int = 128
    patch_size: int = 16
    mean: float = -4.268
    std: float = 4.569
    crop: Crop = "start"
    min_seconds: float = 0.625
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_mels"):
            size = getattr(self, name)
            if size % self.patch_size:
                multiple = max(1, round(size / self.patch_size)) * self.patch_size
                raise ValueError(
                    f"{name}={size} is no multiple of patch_size={self.patch_size}; set {name}={multiple} or another "
                    "patch_size"
                )
        for clips in distinct({"train": self.train, "probe_train": self.probe_train, "val": self.val}).values():
            report_left_out(clips, self.max_bad_fraction, self.min_seconds)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Patches in time and in mel bins."""
        return self.num_frames // self.patch_size, self.num_mels // self.patch_size

    @property
    def size(self) -> float:
        """Recordings to pretrain on."""
        return len(self.train)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are none."""
        labelled = self.probe_train or self.val
        return None if labelled is None else labelled.class_names

    def pretrain_dataset(self, seed: int) -> PretrainSamples[np.ndarray]:
        """Views by SampleKey. Raises ValueError if all recordings are too short."""
        self.train.check_not_empty()
        return PretrainSamples(self.train, self._view(), seed)

    def finetune(
        self, augment: SoundAugment | None = None, label_fraction: PositiveFraction = 1.0, seed: int = 0
    ) -> FinetuneSet[np.ndarray]:
        """The labelled recordings, to train on and to score.

        Args:
            augment: how recordings are varied in training; None for not at all.
            label_fraction: train on this share of every class only.
            seed: decides which.

        Raises:
            ValueError: training or validation recordings have no classes.
        """
        if self.train.class_names is None or self.val is None or self.val.class_names is None:
            raise ValueError(
                "fine-tuning needs classes of training and validation recordings: class_folders=true or label_pattern "
                "and val_root, or classes, val_manifest and val_classes"
            )
        view = self._view()
        return FinetuneSet(
            train=part(self.train, label_fraction, seed, stratify=not isinstance(self.train.label(0), tuple)),
            evals={"val": self.val},
            labels=self.train.class_names,
            train_view=view if augment is None else AugmentedView(view, augment),
            eval_view=view,
            collate=self.eval_collate,
            eval_batch_size=self.eval_batch_size,
            max_bad_fraction=self.max_bad_fraction,
        )

    def bad_sample_counter(self) -> BadSampleCounter:
        """A counter for ``Batch.skipped`` with this data's limit."""
        return BadSampleCounter(self.max_bad_fraction, len(self.train))

    def eval_dataset(self, split: str) -> EvalSamples[np.ndarray]:
        """The beginning of every recording of "train" or "val", also of those shorter than ``min_seconds``.

        Raises:
            ValueError: there is no such split.
        """
        clips = self.val if split == "val" else self.probe_train or self.train
        if clips is None:
            raise ValueError(f"split {split!r}: this data has no such recordings; set val_root or val_manifest")
        return EvalSamples(clips.every(), self._view())

    @property
    def eval_collate(self) -> EvalCollate:
        """Views to a batch without masks."""
        return EvalCollate(MODALITY, (1, self.num_frames, self.num_mels))

    def raw(self, split: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every mel bin over time, (N, 2 num_mels) float32, and labels (N,) int64."""
        dataset = self.eval_dataset(split)
        samples = (dataset[i] for i in range(len(dataset)))  # one recording at a time
        rows = [
            (torch.cat([x.inputs[0].mean(0), x.inputs[0].std(0)]), x.label) for x in samples if x.inputs is not None
        ]
        if not rows:
            raise ValueError(f"split {split!r}: none of these recordings can be read")
        return torch.stack([row for row, _ in rows]), torch.tensor([-1 if y is None else y for _, y in rows])

    def raw_ids(self, split: str) -> list[int]:
        """Indices of the recordings of :meth:`raw`."""
        dataset = self.eval_dataset(split)
        return [i for i in range(len(dataset)) if dataset[i].inputs is not None]

    def measures(self) -> dict[str, SpectrogramMeasures]:
        """Measurements to be made for ``d2v check``, by the name of the source."""
        return {name: SpectrogramMeasures(clips, self._view()) for name, clips in self._sources().items()}

    def _view(self) -> SpectrogramView:
        bank = FilterBank(self.sample_rate, self.num_mels)
        return SpectrogramView(bank, self.num_frames, self.mean, self.std, self.crop == "random")
