"""``SpeechData``: clips of speech and their batches, the interface of speech data to the trainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Required, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.batching import BatchSplit, check_seconds_fit, split_batch, split_seconds, whole
from d2v.data.contents import distinct
from d2v.data.datasets import EvalCollate, EvalSamples, PretrainSet
from d2v.data.labelled import FinetuneSet, part
from d2v.data.length_sampler import LengthSampler
from d2v.data.letters import LETTERS, check_letters
from d2v.data.samplers import BatchPlan
from d2v.data.shards import ShardedBatches, stream_batches
from d2v.data.source import Source
from d2v.data.speech.batches import MODALITY, ClipCollate, CropView, EvalView, PretrainClips, SectionView
from d2v.data.speech.clips import AudioClips
from d2v.data.speech.measures import ClipMeasures
from d2v.data.speech.transcripts import TranscribedClips, WholeView, choose_hours, name_unlearnable
from d2v.data.streams import Stream, StreamBatches
from d2v.data.units import InSeconds
from d2v.objective.masking import MaskGenerator
from d2v.types import num_frames
from d2v.values import ConvLayers, Count, Fraction, Name, PositiveFloat, PositiveFraction, SampleRate, Seconds

log = logging.getLogger(__name__)


class SpeechOptions(TypedDict, total=False):
    """Options of every factory of speech, with their ranges; meaning and defaults are those of :class:`SpeechData`."""

    conv_layers: Required[ConvLayers]
    sample_rate: SampleRate
    min_seconds: Seconds
    max_seconds: Seconds
    eval_max_seconds: Seconds
    pool_size: Count
    max_bad_fraction: Fraction


@dataclass(frozen=True, kw_only=True)
class SpeechData(PretrainSet):
    """Clips of speech and their batches for pretraining, evaluation and fine-tuning.

    Attributes:
        train: clips to pretrain on; a stream has no length and no access by number; None where there are only clips to
            probe with.
        probe_train: clips with labels or transcripts to train probes on, or None.
        val: such clips to evaluate probes on, or None. With groups and without ``val``, every group of ``probe_train``
            is held out in turn.
        sample_rate: Hz.
        max_seconds: longer clips are cropped to this in training.
        min_seconds: shorter clips are left out.
        crop_seconds: length of every crop of a stream.
        eval_max_seconds: longer clips are not evaluated.
        conv_layers: of the encoder: (channels, kernel size, stride) of each convolution, which say what a frame is.
        pool_size: clips that are sorted by length at a time; 0 for what makes 50 optimizer steps.
        max_bad_fraction: highest tolerated share of clips that cannot be read.
        shuffle_buffer: rows that every worker holds to shuffle a stream; unused otherwise.

    Raises:
        ValueError: values do not fit each other.
        TooManyBadSamples: more clips cannot be read than ``max_bad_fraction`` allows.
    """

    modality: ClassVar[str] = MODALITY
    input_keys: ClassVar[tuple[str, ...]] = ("sample_rate", "conv_layers")
    tokens_are: ClassVar[str] = "up to"
    input_name: ClassVar[str] = "log-mel features"
    eval_batch_size: ClassVar[int] = 8

    train: AudioClips | Stream | None
    probe_train: AudioClips | None = None
    val: AudioClips | None = None
    sample_rate: int = 16000
    max_seconds: float = 20.0
    min_seconds: float = 2.0
    crop_seconds: float = 10.0
    eval_max_seconds: float = 60.0
    conv_layers: Sequence[Sequence[int]] = field(default=())
    pool_size: int = 0
    max_bad_fraction: float = 0.01
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        layers = tuple(tuple(int(value) for value in layer) for layer in self.conv_layers)
        object.__setattr__(self, "conv_layers", layers)
        check_seconds(self.min_seconds, self.max_seconds)
        for name in ("min_seconds", "crop_seconds", "eval_max_seconds"):
            if num_frames(self._samples(getattr(self, name)), layers) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: such a clip holds no frame; raise it")
        for name, clips in (("train", self.train), ("probe_train", self.probe_train), ("val", self.val)):
            if isinstance(clips, AudioClips) and not (name == "probe_train" and clips is self.train):
                report_left_out(clips, self.max_bad_fraction, self.min_seconds)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate)

    @property
    def batch_unit(self) -> str:
        """Unit of batches: "seconds", or, of a stream, crops of ``crop_seconds``."""
        return "crops" if self.streaming else "seconds"

    @property
    def streaming(self) -> bool:
        """Return whether to train on ``pretrain_stream`` and not on ``pretrain_dataset``."""
        return self.train is not None and not isinstance(self.train, AudioClips)

    @property
    def _lengths(self) -> np.ndarray:
        return np.minimum(self._clips().lengths, self._samples(self.max_seconds))

    @property
    def size(self) -> float | None:
        """Seconds to pretrain on; None for a stream."""
        return None if self.streaming else float(self._lengths.sum() / self.sample_rate)

    @property
    def token_grid(self) -> tuple[int]:
        """Frames of the longest crop."""
        longest = self._samples(self.crop_seconds) if self.streaming else int(self._lengths.max())
        return (num_frames(longest, self.conv_layers),)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are none."""
        labelled = self.probe_train or self.val
        return None if labelled is None else labelled.class_names

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation for batches that are counted in seconds of audio.

        Args:
            global_batch_size: seconds per optimizer step, over all devices; what a recipe fixes.
            micro_batch_size: so many seconds on a device at a time, on average over an optimizer step: where its clips
                cannot be dealt evenly, some micro-batches hold one more than others. None for all of its share at once.
            world_size: devices.

        Raises:
            ValueError: a device's share does not hold the longest crop.
        """
        longest = self.crop_seconds if self.streaming else float(self._lengths.max() / self.sample_rate)
        if not self.streaming:
            return split_seconds(global_batch_size, micro_batch_size, world_size, longest)
        check_seconds_fit(global_batch_size, micro_batch_size, world_size, longest)
        crops = whole(global_batch_size / world_size / self.crop_seconds)  # equally many in every micro-batch
        limit = crops if micro_batch_size is None else whole(micro_batch_size / self.crop_seconds)
        return split_batch(crops * world_size, limit, world_size)

    def pretrain_dataset(self, seed: int) -> PretrainClips:
        """Random crops by ClipKey. Raises ValueError if the data is a stream."""
        return PretrainClips(self._clips(), seed)

    def pretrain_sampler(self, seed: int, split: BatchSplit, **plan: Any) -> LengthSampler:
        """Batches of ClipKeys: clips of about the same length."""
        seconds = split.micro_batch_size * split.accumulate * split.world_size
        return LengthSampler(
            lengths=self._lengths, step_length=self._samples(seconds), seed=seed, pool_size=self.pool_size, **plan
        )

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if no such masks exist for the shortest or longest crop."""
        shortest = self._samples(self.crop_seconds) if self.streaming else int(self._lengths.min())
        for frames in (num_frames(shortest, self.conv_layers), *self.token_grid):
            if mask is not None:
                mask.validate((frames,))

    def pretrain_collate(self, mask: MaskGenerator | None, seed: int) -> ClipCollate:
        """Crops to a batch with masks. Raises ValueError if no such masks exist for the shortest or longest crop."""
        self.check_mask(mask)
        return ClipCollate(MODALITY, mask, self.token_grid, seed, self.conv_layers)  # type: ignore[arg-type]  # made tuples above

    def pretrain_stream(self, mask: MaskGenerator | None, seed: int, plan: BatchPlan) -> StreamBatches | ShardedBatches:
        """Batches of random crops with masks, for a ``DataLoader`` with ``batch_size=None``."""
        if self.train is None or isinstance(self.train, AudioClips):
            raise ValueError("streaming=false: use pretrain_dataset")
        collate = self.pretrain_collate(mask, seed)
        view = CropView(self._samples(self.crop_seconds))
        return stream_batches(self.train, view, collate, seed, plan, self.shuffle_buffer)

    def eval_dataset(self, split: str) -> EvalSamples[np.ndarray]:
        """Every whole clip, for a ``DataLoader`` with ``eval_collate``: those shorter than ``min_seconds``, too.

        Args:
            split: "train" (``probe_train``, or all training clips if none has a label) or "val".

        Raises:
            ValueError: there is no such split.
        """
        clips = self._eval_clips(split)
        return EvalSamples(clips, EvalView(self._min_eval_samples, self._samples(self.eval_max_seconds)))

    @property
    def eval_collate(self) -> EvalCollate:
        """Clips to a padded batch."""
        return EvalCollate(MODALITY, (1,), num_tokens=partial(num_frames, conv_layers=self.conv_layers))

    @property
    def _min_eval_samples(self) -> int:
        return next(n for n in range(1, 10**9) if num_frames(n, self.conv_layers) > 0)

    def _eval_clips(self, split: str) -> AudioClips:
        clips: Any = self.val if split == "val" else self.probe_train
        if clips is None and split == "train" and not self.streaming:
            clips = self.train
        if clips is None:
            raise ValueError(f"split {split!r}: this data has no such clips; set val_root, or choose another split")
        return clips.every()

    def finetune(
        self,
        letters: Name = LETTERS,
        hours: PositiveFloat | None = None,
        label_fraction: PositiveFraction = 1.0,
        on_bad_text: Literal["error", "skip"] = "error",
        seed: int = 0,
    ) -> FinetuneSet[np.ndarray]:
        """The clips with transcripts, to train on and to score; or those with classes, where there are no transcripts.

        Args:
            letters: what they are spelled with (see :mod:`d2v.data.letters`).
            hours: train on so many of ``train``'s only, of as many speakers as possible; None for all.
            label_fraction: train on this share of the clips only.
            on_bad_text: what to do with transcripts that cannot be spelled, "error" or "skip".
            seed: decides which clips.

        Raises:
            ValueError: there are no transcripts and no classes, or a transcript cannot be spelled.
        """
        clips = self.train if isinstance(self.train, AudioClips) and self.train.has_transcripts else self.probe_train
        if clips is None or self.val is None:
            raise ValueError("fine-tuning needs clips with transcripts to train on and to score: see val=...")
        if clips.class_names is not None and not clips.has_transcripts:
            return self._finetune_on_classes(clips, self.val, label_fraction, seed)
        check_letters(letters)
        every = TranscribedClips(clips, letters, self._samples(self.max_seconds), on_bad_text, "max_seconds")
        train: Source[np.ndarray] = every if hours is None else choose_hours(every, hours, self.sample_rate, seed)
        train = part(train, label_fraction, seed, stratify=False)
        name_unlearnable(train, train.lengths, self.conv_layers)  # type: ignore[attr-defined, arg-type]
        view = EvalView(self._min_eval_samples, self._samples(self.eval_max_seconds))
        return FinetuneSet(
            train=train,
            evals={"val": TranscribedClips(self.val, letters, self._samples(self.eval_max_seconds), on_bad_text)},
            labels=letters,
            train_view=WholeView(view),
            eval_view=view,
            collate=self.eval_collate,
            eval_batch_size=self.eval_batch_size,
            batching=InSeconds(self.sample_rate, self.pool_size),
            max_bad_fraction=self.max_bad_fraction,
        )

    def _finetune_on_classes(
        self, clips: AudioClips, val: AudioClips, label_fraction: float, seed: int
    ) -> FinetuneSet[np.ndarray]:
        """Return clips with classes; a batch is a number of clips."""
        assert clips.class_names is not None
        return FinetuneSet(
            train=part(clips, label_fraction, seed),
            evals={"val": val},
            labels=clips.class_names,
            train_view=SectionView(self._min_eval_samples, self._samples(self.max_seconds)),
            eval_view=EvalView(self._min_eval_samples, self._samples(self.eval_max_seconds)),
            collate=self.eval_collate,
            eval_batch_size=self.eval_batch_size,
            max_bad_fraction=self.max_bad_fraction,
        )

    def raw(self, split: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of 40 log-mels, (N, 80) float32, and labels (N,) int64."""
        frames, ids = self.raw_frames(split)
        if not frames:
            raise ValueError(f"split {split!r}: none of these clips can be read")
        features = torch.stack([torch.cat([x.mean(0), x.std(0)]) for x in frames])
        labels = [self._eval_clips(split).label(i) for i in ids.tolist()]
        return features, torch.tensor([-1 if label is None else label for label in labels])

    def raw_ids(self, split: str) -> list[int]:
        """Indices of the clips of :meth:`raw`."""
        ids: list[int] = self.raw_frames(split)[1].tolist()
        return ids

    def raw_frames(self, split: str) -> tuple[list[Tensor], Tensor]:
        """40 log-mels every 20 ms of every clip that can be read, (T, 40) float32 each, and sample ids (N,) int64."""
        dataset = self.eval_dataset(split)
        samples = (dataset[i] for i in range(len(dataset)))  # one waveform at a time
        mel = _LogMel(self.sample_rate)
        kept = [(mel(sample.inputs), sample.key.index) for sample in samples if sample.inputs is not None]
        return [frames for frames, _ in kept], torch.tensor([index for _, index in kept])

    def measures(self) -> dict[str, ClipMeasures]:
        """Measurements to be made for ``d2v check``, by the name of the source; a stream has none."""
        sources = distinct({"train": self.train, "probe_train": self.probe_train, "val": self.val})
        return {name: ClipMeasures(clips) for name, clips in sources.items() if isinstance(clips, AudioClips)}

    def assets(self) -> dict[str, str]:
        """Return {}: an encoder of speech needs no files."""
        return {}

    def bad_sample_counter(self) -> BadSampleCounter:
        """A counter for ``Batch.skipped`` with this data's limit."""
        return BadSampleCounter(self.max_bad_fraction, None if self.streaming else len(self._clips()))

    def _clips(self) -> AudioClips:
        if not isinstance(self.train, AudioClips):
            what = (
                "streaming=true: use pretrain_stream" if self.streaming else "root=null: there are no clips to train on"
            )
            raise ValueError(what)
        self.train.check_not_empty()
        return self.train


class _LogMel:
    """Logarithms of 40 mel bands, every 20 ms."""

    def __init__(self, sample_rate: int) -> None:
        import torchaudio.transforms

        self._mel = torchaudio.transforms.MelSpectrogram(
            sample_rate,
            n_fft=sample_rate // 40,
            hop_length=sample_rate // 50,
            n_mels=40,
            f_max=min(8000, sample_rate / 2),
        )

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return log-mels (T, 40) of a waveform (S,)."""
        shortage = self._mel.n_fft - len(waveform)  # of which the transform reflects half at either end
        bands: Tensor = self._mel(F.pad(waveform, (0, max(0, shortage))))
        return (bands + 1e-5).log().T.contiguous()


def check_seconds(min_seconds: float, max_seconds: float) -> None:
    """Raise ValueError, naming keys and fix, if the shortest clip is longer than the longest."""
    if min_seconds > max_seconds:
        raise ValueError(f"min_seconds={min_seconds}, max_seconds={max_seconds}: choose min_seconds <= max_seconds")


def report_left_out(clips: AudioClips, max_bad_fraction: float, min_seconds: float) -> None:
    """Log clips that were left out when listing. Raises TooManyBadSamples if too many cannot be read."""
    total = len(clips) + len(clips.bad) + len(clips.too_short)
    for entry in BadSampleCounter(max_bad_fraction, total).update(clips.bad):
        log.warning("skipped %s", entry)
    if clips.too_short:
        log.warning(
            "left out %d of %d clips shorter than min_seconds=%g: %s%s",
            len(clips.too_short), total, min_seconds, ", ".join(clips.too_short[:5]),
            ", ..." if len(clips.too_short) > 5 else "",
        )  # fmt: skip
