"""Labelled data for fine-tuning and scoring, for all modalities.

A modality defines the views of its samples in training and evaluation, and the collate functions. The source defines
the labels: a class, a score or letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Generic

import numpy as np
from torch.utils.data import DataLoader

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.batching import BatchSplit
from d2v.data.contents import Contents, describe_sources
from d2v.data.datasets import EvalSamples, PretrainSamples
from d2v.data.eval_loader import sorted_loader
from d2v.data.keys import ClipKey, RandomStream, SampleKey, sample_rng
from d2v.data.length_sampler import LengthSampler
from d2v.data.loading import TrainLoader, Workers, sample_loader
from d2v.data.samplers import StepPlan, StreamSampler
from d2v.data.source import FixedView, Label, RandomView, Sample, Source, T, T_co
from d2v.data.units import Batching, InSamples
from d2v.types import Batch
from d2v.values import PositiveFraction


@dataclass(frozen=True)
class Part(Generic[T_co]):
    """Source of some samples of another source.

    Attributes:
        source: the other source.
        ids: indices of the samples in it.
    """

    source: Source[T_co]
    ids: Sequence[int]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None."""
        return self.source.class_names

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of these samples, where they differ."""
        lengths = getattr(self.source, "lengths", None)
        return None if lengths is None else np.asarray(lengths)[list(self.ids)]

    @property
    def contents(self) -> Contents:
        """Contents of the source, and the number of its samples of which these are a part."""
        contents: Contents = getattr(self.source, "contents", None) or Contents()
        return replace(contents, notes=(f"of {len(self.source):,} labelled", *contents.notes))

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> T_co:
        """The decoded sample. Raises BadSample."""
        return self.source.load(self.ids[index])

    def label(self, index: int) -> Label | None:
        """The sample's label."""
        return self.source.label(self.ids[index])

    def name(self, index: int) -> str:
        """Return the name of the sample."""
        return self.source.name(self.ids[index])

    def mark(self, index: int) -> bytes:
        """Return the source's mark (see :mod:`d2v.data.fingerprint`)."""
        mark = getattr(self.source, "mark", None)
        return b"" if mark is None else bytes(mark(self.ids[index]))


def part(source: Source[T], fraction: PositiveFraction, seed: int, stratify: bool = True) -> Source[T]:
    """Return a random part of a source, determined by the seed; a larger part includes the smaller ones.

    Args:
        source: labelled samples.
        fraction: of the samples, above 0 and at most 1.
        seed: decides which.
        stratify: take this share of every class, at least one sample each; else of all.

    """
    if fraction == 1:
        return source
    order = sample_rng(seed, 0, 0, RandomStream.ORDER).permutation(len(source)).tolist()
    groups: dict[Label | None, list[int]] = {}
    for i in order:
        groups.setdefault(source.label(i) if stratify else None, []).append(i)
    chosen = [i for group in groups.values() for i in group[: max(1, math.ceil(fraction * len(group) - 1e-9))]]
    return Part(source, sorted(chosen))


class LabelledSamples(PretrainSamples[T]):
    """Data set of one random view of every sample, with its label, indexed by the keys of a sampler."""

    def __getitem__(self, key: SampleKey | ClipKey) -> Sample:
        """The view of this sample, or of the next good one, and its label."""
        sample = super().__getitem__(key)
        step_size = key.step_size if isinstance(key, ClipKey) else None
        return sample._replace(label=self.source.label(sample.key.index), step_size=step_size)


@dataclass(frozen=True, kw_only=True)
class FinetuneSet(Generic[T]):
    """Labelled samples with views and collate functions; implements :class:`d2v.data.protocol.FinetuneData`.

    Attributes:
        train: to train on.
        evals: to score, by name; the first one, "val", chooses the best checkpoint. "test" sets may lack labels.
        labels: what labels mean: names of classes, letters, or the lowest and the highest score.
        train_view: makes a random view of a decoded sample.
        eval_view: makes the one view for evaluation.
        collate: makes a batch of samples.
        train_collate: makes a batch of samples in training; None for ``collate``.
        eval_batch_size: samples scored at a time.
        batching: unit in which batches are counted.
        max_bad_fraction: highest tolerated share of samples that cannot be read.
        submission: writes answers for a set without labels into a folder, for whoever scores them; or None.

    Raises:
        ValueError: a sample to train on or to choose by has no label.
    """

    train: Source[T]
    evals: Mapping[str, Source[T]]
    labels: Sequence[str] | tuple[float, float]
    train_view: RandomView[T]
    eval_view: FixedView[T]
    collate: Callable[[Sequence[Sample]], Batch]
    train_collate: Callable[[Sequence[Sample]], Batch] | None = None
    eval_batch_size: int
    batching: Batching = field(default_factory=InSamples)
    max_bad_fraction: float = 0.01
    submission: Callable[[Path, str, Sequence[object]], Path] | None = None

    def __post_init__(self) -> None:
        for kind, source in (("training", self.train), ("validation", self.evals["val"])):
            bare = [i for i in range(len(source)) if source.label(i) is None]
            if bare:
                raise ValueError(
                    f"{len(bare)} of {len(source)} {kind} samples have no label, {source.name(bare[0])} is the first: "
                    "label them, or leave them out"
                )

    @property
    def batch_unit(self) -> str:
        """Unit of ``global_batch_size``."""
        return self.batching.unit

    @property
    def size(self) -> float:
        """The data to train on, in ``batch_unit``."""
        return self.batching.size(self.train)

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation. Raises ValueError if the global batch cannot be spread."""
        return self.batching.split(self.train, global_batch_size, micro_batch_size, world_size)

    @property
    def mixes(self) -> bool:
        """Return whether batches are mixed in pairs, so that they must hold an even number of samples."""
        return self.train_collate is not None

    def loader(self, seed: int, split: BatchSplit, plan: StepPlan, workers: Workers) -> TrainLoader:
        """Training batches of one rank (:meth:`d2v.data.protocol.FinetuneData.loader`)."""
        sampler = self.train_sampler(seed, split, **asdict(plan))
        collate = self.train_collate or self.collate
        return sample_loader(self.train_dataset(seed), sampler, collate, workers, self.bad_sample_counter())

    def train_dataset(self, seed: int) -> LabelledSamples[T]:
        """Random views with labels, by the keys of ``train_sampler``."""
        return LabelledSamples(self.train, self.train_view, seed)

    def train_sampler(self, seed: int, split: BatchSplit, **plan: int) -> StreamSampler | LengthSampler:
        """Batches of keys; ``plan`` are the arguments of a :class:`StepPlan`."""
        return self.batching.sampler(self.train, seed, split, **plan)

    def eval_loader(self, name: str, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> DataLoader[Sample]:
        """Batches of an evaluation set, each sample once, or a share (:func:`d2v.data.eval_loader.sorted_loader`)."""
        samples = EvalSamples(self.evals[name], self.eval_view)
        return sorted_loader(samples, self.eval_batch_size, self.collate, num_workers, rank, world_size)

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes, files left out."""
        return [*describe_sources({"train": self.train, **self.evals}), "best      by the score on val"]

    def bad_sample_counter(self) -> BadSampleCounter:
        """Counts and limits what cannot be read."""
        return BadSampleCounter(self.max_bad_fraction, len(self.train))
