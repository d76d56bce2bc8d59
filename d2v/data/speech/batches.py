"""Batches of speech: random crops for pretraining, whole clips for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from d2v.data.bad_samples import TOO_SHORT, BadSample
from d2v.data.datasets import PretrainCollate
from d2v.data.keys import ClipKey, RandomStream, SampleKey, sample_rng
from d2v.data.source import MAX_TRIES, Sample, first_good
from d2v.data.speech.clips import AudioClips
from d2v.types import num_frames

MODALITY = "speech"

ConvLayers = tuple[tuple[int, ...], ...]


def normalize(waveform: np.ndarray) -> Tensor:
    """Normalise a waveform (S,) to zero mean and unit variance, float32."""
    x = torch.from_numpy(waveform)
    return F.layer_norm(x, x.shape)


def crop_start(num_samples: int, length: int, rng: np.random.Generator) -> int:
    """Return the start of a random crop of a clip.

    Raises:
        BadSample: the clip is shorter than ``length``.
    """
    if num_samples < length:
        raise BadSample(f"holds {num_samples} samples, fewer than the {length} it was listed for")
    return int(rng.integers(num_samples - length + 1))


def crop(waveform: np.ndarray, length: int, rng: np.random.Generator) -> Tensor:
    """Return a random crop of a clip, which is normalised as a whole.

    Raises:
        BadSample: the clip is shorter than ``length``.
    """
    start = crop_start(len(waveform), length, rng)
    return normalize(waveform)[start : start + length]


class PretrainClips(Dataset[Sample]):
    """Data set of a random crop of every clip, indexed by ClipKey.

    Of long recordings (``AudioClips.recording``) only the crop is read, at the same position, and normalised by itself.

    Args:
        clips: the clips.
        seed: the run's data seed.
    """

    def __init__(self, clips: AudioClips, seed: int) -> None:
        self.clips = clips
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: ClipKey) -> Sample:
        """A crop of this clip, or of the next good one that is long enough."""

        def make(candidate: int) -> Tensor:
            rng = sample_rng(self.seed, key.epoch, candidate, RandomStream.VIEW)
            recording = self.clips.recording(candidate)
            if recording is None or recording.num_samples is None:
                return crop(self.clips.load(candidate), key.length, rng)
            start = crop_start(recording.num_samples, key.length, rng)
            return normalize(recording.read(start, start + key.length))

        def make_longer(candidate: int) -> Tensor:
            waveform = self.clips.load(candidate)
            repeated = np.resize(waveform, max(len(waveform), key.length))
            return crop(repeated, key.length, sample_rng(self.seed, key.epoch, candidate, RandomStream.VIEW))

        lengths = self.clips.lengths
        turn = ((key.index + i) % len(self) for i in range(len(self)))
        long_enough = (candidate for candidate in turn if lengths[candidate] >= key.length)
        try:
            good, view, skipped = first_good(islice(long_enough, MAX_TRIES), make, self.clips.name)
        except BadSample:  # of the longest clips every one is bad: a shorter one, repeated
            shorter = [int(i) for i in np.argsort(-lengths, kind="stable") if lengths[i] < key.length][:MAX_TRIES]
            if not shorter:
                raise
            good, view, skipped = first_good(shorter, make_longer, self.clips.name)
            skipped = (f"{self.clips.name(key.index)}: cannot be read", *skipped)
        return Sample(view, SampleKey(key.epoch, good), skipped=skipped, step_size=key.step_size)


@dataclass(frozen=True)
class CropView:
    """A random crop of a fixed length, for streams.

    Attributes:
        length: samples.
    """

    length: int

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return (length,) float32. Raises BadSample for shorter clips."""
        if len(waveform) < self.length:
            raise BadSample(f"{TOO_SHORT}: {len(waveform)} samples, crop_seconds takes {self.length}")
        return crop(waveform, self.length, rng)


@dataclass(frozen=True)
class SectionView:
    """A whole clip, or a random crop of a longer one, for fine-tuning on classes.

    Attributes:
        min_samples: shortest clip with a frame.
        max_samples: longer clips are cropped to this.
    """

    min_samples: int
    max_samples: int

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return (S,) float32. Raises BadSample for clips without a frame."""
        if len(waveform) < self.min_samples:
            raise BadSample(f"{len(waveform)} samples do not hold one frame")
        return crop(waveform, min(len(waveform), self.max_samples), rng)


@dataclass(frozen=True)
class EvalView:
    """A whole clip.

    Attributes:
        min_samples: shortest clip with a frame.
        max_samples: longer clips are bad samples, because a transcript cannot be cropped with its clip.
    """

    min_samples: int
    max_samples: int

    def __call__(self, waveform: np.ndarray) -> Tensor:
        """Return (S,) float32. Raises BadSample for clips that are too short or too long."""
        if len(waveform) < self.min_samples:
            raise BadSample(f"{len(waveform)} samples do not hold one frame")
        if len(waveform) > self.max_samples:
            raise BadSample(f"{len(waveform)} samples, more than eval_max_seconds allows")
        return normalize(waveform)


@dataclass(frozen=True)
class ClipCollate(PretrainCollate):
    """Collate function for crops of equal length, which differs between steps.

    Attributes:
        conv_layers: of the encoder: what a frame is.
    """

    conv_layers: ConvLayers

    def grid(self, inputs: Tensor) -> tuple[int]:
        """Frames of these crops."""
        return (num_frames(inputs.shape[1], self.conv_layers),)
