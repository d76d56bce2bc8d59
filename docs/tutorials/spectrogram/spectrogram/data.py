"""Log-mel spectrograms of the spoken prompts that ship with d2v, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.datasets import EqualSamples, EvalCollate, EvalSamples, PretrainSamples
from d2v.data.speech.clips import AudioClips, prompt_clips, read_prompt
from d2v.values import buildable


class SpokenPrompts(AudioClips):
    """The prompts, labelled by whether more than six words are said in them, just to have something to probe."""

    def __init__(self, split: str, sample_rate: int, min_samples: int) -> None:
        super().__init__(read_prompt, prompt_clips(split), sample_rate, min_samples)  # type: ignore[arg-type]
        self.class_names = ("short", "long")

    def label(self, index: int) -> int | None:
        """1 for long prompts."""
        return int(len((self.transcript(index) or "").split()) > 6)


@dataclass(frozen=True)
class LogMel:
    """A stretch of a clip as a spectrogram, from a random place if there is a generator."""

    sample_rate: int
    num_steps: int
    num_mels: int

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """(S,) -> (num_steps, num_mels) float32."""
        hop = self.sample_rate // 100
        mel = MelSpectrogram(self.sample_rate, n_fft=4 * hop, hop_length=hop, n_mels=self.num_mels, f_max=4000.0)
        bands = (mel(torch.from_numpy(waveform)) + 1e-5).log().T / 4 + 1
        start = 0 if rng is None else int(rng.integers(max(1, len(bands) - self.num_steps + 1)))
        bands = bands[start : start + self.num_steps]
        return torch.nn.functional.pad(bands, (0, 0, 0, self.num_steps - len(bands)))


@buildable
class SmallData(EqualSamples):
    """Spectrograms of ``num_steps`` times 10 ms, and how they become batches."""

    modality: ClassVar[str] = "small_spectrogram"
    input_name: ClassVar[str] = "raw spectrograms"
    eval_batch_size: ClassVar[int] = 64

    def __init__(self, num_steps: int, num_mels: int, patch_size: int, sample_rate: int = 8000) -> None:
        self.patch_size = patch_size
        self.view = LogMel(sample_rate, num_steps, num_mels)
        self.train = self.probe_train = SpokenPrompts("train", sample_rate, sample_rate // 2)
        self.val = SpokenPrompts("val", sample_rate, sample_rate // 2)
        self.class_names = self.train.class_names

    @property
    def token_grid(self) -> tuple[int, int]:
        """Patches in time and in mel bands."""
        return self.view.num_steps // self.patch_size, self.view.num_mels // self.patch_size

    @property
    def size(self) -> float:
        """Clips to pretrain on."""
        return len(self.train)

    def pretrain_dataset(self, seed: int) -> PretrainSamples:
        """Random stretches."""
        return PretrainSamples(self.train, self.view, seed)

    def bad_sample_counter(self) -> BadSampleCounter:
        """One per cent may be unreadable."""
        return BadSampleCounter(0.01, len(self.train))

    def eval_dataset(self, split: str) -> EvalSamples:
        """The beginnings of clips."""
        return EvalSamples(self.val if split == "val" else self.train, self.view)

    @property
    def eval_collate(self) -> EvalCollate:
        """Spectrograms to a batch."""
        return EvalCollate(self.modality, (self.view.num_steps, self.view.num_mels))

    def raw(self, split: str) -> tuple[Tensor, Tensor]:
        """Whole spectrograms as features, the baseline."""
        dataset = self.eval_dataset(split)
        batch = self.eval_collate(list(map(dataset.__getitem__, range(len(dataset)))))
        assert batch.labels is not None
        return batch.inputs.flatten(1), batch.labels
