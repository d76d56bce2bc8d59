"""torch data sets over sources of any modality, and their collate functions, as run in the data workers.

Randomness of a sample depends only on (seed, epoch, sample id), so batches do not depend on the number of workers. A
sample that cannot be read is replaced by the next readable one, as if that had been drawn, and reported in
``Batch.skipped``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from d2v.data.bad_samples import BadSample, BadSampleCounter
from d2v.data.batching import BatchSplit, split_batch
from d2v.data.contents import describe_sources, distinct
from d2v.data.keys import ClipKey, RandomStream, SampleKey, sample_rng
from d2v.data.loading import TrainLoader, Workers, sample_loader, stream_loader
from d2v.data.measures import Measures
from d2v.data.samplers import BatchPlan, StepPlan, StreamSampler
from d2v.data.shards import ShardedBatches
from d2v.data.source import MAX_TRIES, FixedView, RandomView, Sample, Source, T, first_good, labels_of, skipped_in
from d2v.data.streams import Stream, StreamBatches
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, TokenMask


class PretrainSamples(Dataset[Sample], Generic[T]):
    """Data set of one random view of every sample, indexed by the keys of a sampler.

    Args:
        source: the samples.
        view: makes the view.
        seed: the run's data seed.
    """

    def __init__(self, source: Source[T], view: RandomView[T], seed: int) -> None:
        self.source = source
        self.view = view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | ClipKey) -> Sample:
        """The view of this sample, or of the next good one. Raises BadSample after 1,000 bad ones or a full turn."""
        epoch, index = key[:2]

        def make(candidate: int) -> Tensor:
            rng = sample_rng(self.seed, epoch, candidate, RandomStream.VIEW)
            return self.view(self.source.load(candidate), rng)

        turn = ((index + i) % len(self) for i in range(min(len(self), MAX_TRIES)))
        good, view, skipped = first_good(turn, make, self.source.name)
        return Sample(view, SampleKey(epoch, good), skipped=skipped)


class EvalSamples(Dataset[Sample], Generic[T]):
    """Data set of the evaluation view of every sample, with its label, indexed by number.

    Args:
        source: the samples.
        view: makes the view.
    """

    def __init__(self, source: Source[T], view: FixedView[T]) -> None:
        self.source = source
        self.view = view

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        key = SampleKey(0, index)
        try:
            view = self.view(self.source.load(index))
        except BadSample as error:
            return Sample(None, key, skipped=(f"{self.source.name(index)}: {error}",))
        return Sample(view, key, self.source.label(index))


@dataclass(frozen=True)
class PretrainCollate:
    """Collate function for views of equal shape, which draws the masks of every sample.

    Attributes:
        modality: of the batch.
        mask_generator: generator of the masks; None for batches without masks.
        token_grid: shape of the grid of a sample's tokens.
        seed: the run's data seed.
    """

    modality: str
    mask_generator: MaskGenerator | None
    token_grid: tuple[int, ...]
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of B views with B * num_masks masks, sample-major."""
        inputs = torch.stack([sample.inputs for sample in samples if sample.inputs is not None])
        return Batch(
            modality=self.modality,
            inputs=inputs,
            sample_ids=torch.tensor([sample.key.index for sample in samples]),
            mask=self._mask(samples, inputs),
            skipped=skipped_in(samples),
            step_size=samples[0].step_size,
            num_read=None if samples[0].num_read is None else sum(sample.num_read or 0 for sample in samples),
        )

    def _mask(self, samples: Sequence[Sample], inputs: Tensor) -> TokenMask | None:
        if self.mask_generator is None:
            return None
        rngs = [sample_rng(self.seed, *sample.key, RandomStream.MASK) for sample in samples]
        mask = torch.from_numpy(self.mask_generator(self.grid(inputs), rngs))
        return TokenMask.from_bool(mask, self.mask_generator.num_masks)

    def grid(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape in which the tokens of a sample of these inputs lie."""
        return self.token_grid


@dataclass(frozen=True)
class EvalCollate:
    """Collate function for evaluation views, padded to the longest, without samples that could not be read.

    Attributes:
        modality: of the batch.
        shape: of a view; 1 where views differ.
        dtype: of a view.
        num_tokens: tokens of a view, by its length along the first axis; None for views of one size.
        pad_value: fills the shorter views.
    """

    modality: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    num_tokens: Callable[[int], int] | None = None
    pad_value: float = 0.0

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of up to ``len(samples)`` views, in order; labels None if any sample lacks one."""
        good = [sample for sample in samples if sample.inputs is not None]
        views = [sample.inputs for sample in samples if sample.inputs is not None]
        inputs = pad_sequence(views, True, self.pad_value) if views else torch.empty(0, *self.shape, dtype=self.dtype)
        return Batch(
            modality=self.modality,
            inputs=inputs,
            sample_ids=torch.tensor([sample.key.index for sample in good], dtype=torch.int64),
            padding_mask=self._padding(views),
            labels=labels_of(good),
            skipped=skipped_in(samples),
            step_size=samples[0].step_size,
        )

    def _padding(self, views: Sequence[Tensor]) -> Tensor | None:
        """Return (B, T) bool, True = padding; None where nothing is padded."""
        if self.num_tokens is None or not views:
            return None
        tokens = torch.tensor([self.num_tokens(len(view)) for view in views])
        padding = torch.arange(int(tokens.max())) >= tokens.unsqueeze(1)
        return padding if bool(padding.any()) else None


class PretrainSet(ABC):
    """Base class of pretraining data, which builds ``loader`` from the parts of a modality.

    A subclass sets ``modality`` and ``train``, and defines the abstract methods, ``pretrain_stream`` if the data can be
    streamed, and the rest of :class:`d2v.data.protocol.PretrainData`.
    """

    modality: ClassVar[str]
    train: Source[object] | Stream | None
    probe_train: Source[object] | None = None
    val: Source[object] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the batches."""
        return (self.modality,)

    @property
    def streaming(self) -> bool:
        """Return whether ``pretrain_stream`` reads the data, in stored order."""
        return False

    def loader(
        self, mask: MaskGenerator | None, seed: int, split: BatchSplit, plan: StepPlan, workers: Workers
    ) -> TrainLoader:
        """Training batches of one rank (:meth:`d2v.data.protocol.PretrainData.loader`)."""
        if self.streaming:
            batches = BatchPlan(micro_batch_size=int(split.micro_batch_size), **asdict(plan))
            stream = self.pretrain_stream(mask, seed, batches)
            assert stream is not None, "data that stream define pretrain_stream"
            return stream_loader(stream, workers, self.bad_sample_counter())
        sampler = self.pretrain_sampler(seed, split, **asdict(plan))
        collate = self.pretrain_collate(mask, seed)
        return sample_loader(self.pretrain_dataset(seed), sampler, collate, workers, self.bad_sample_counter())

    @abstractmethod
    def pretrain_dataset(self, seed: int) -> Dataset[Sample]:
        """Samples by the keys that ``pretrain_sampler`` gives."""

    @abstractmethod
    def pretrain_sampler(self, seed: int, split: BatchSplit, **plan: int) -> Iterable[Sequence[object]]:
        """Batches of keys; ``plan`` are the arguments of a :class:`StepPlan`."""

    @abstractmethod
    def pretrain_collate(self, mask: MaskGenerator | None, seed: int) -> Callable[[Sequence[Sample]], Batch]:
        """Samples to a batch with masks."""

    def pretrain_stream(
        self, mask: MaskGenerator | None, seed: int, plan: BatchPlan
    ) -> StreamBatches | ShardedBatches | None:
        """Batches with masks, of data that is read in the order in which it is stored; None of all other data."""
        return None

    @abstractmethod
    def bad_sample_counter(self) -> BadSampleCounter:
        """A counter for ``Batch.skipped`` with this data's limit."""

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes, files left out."""
        return describe_sources(self._sources())

    def measures(self) -> Mapping[str, Measures[Any]]:
        """Measurements to be made for ``d2v check``, by the name of the source; a stream has none."""
        return {name: Measures(source) for name, source in self._sources().items() if hasattr(source, "__len__")}

    def _sources(self) -> dict[str, Any]:
        return distinct({"train": self.train, "probe_train": self.probe_train, "val": self.val})


class EqualSamples(PretrainSet):
    """Base class of data with the same number of tokens in each sample, so that a batch is a number of samples.

    A subclass defines ``token_grid`` and ``size``, and the data sets.
    """

    batch_unit: ClassVar[str] = "samples"
    tokens_are: ClassVar[str] = "each"

    @property
    @abstractmethod
    def token_grid(self) -> tuple[int, ...]:
        """The shape in which the tokens of a sample lie."""

    @property
    @abstractmethod
    def size(self) -> float | None:
        """Samples to pretrain on; None for a stream."""

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        """Derive accumulation (:func:`d2v.data.batching.split_batch`)."""
        return split_batch(global_batch_size, micro_batch_size, world_size)

    def pretrain_sampler(self, seed: int, split: BatchSplit, **plan: int) -> StreamSampler:
        """Batches of SampleKeys."""
        return StreamSampler(
            num_samples=int(self.size or 0), seed=seed, micro_batch_size=int(split.micro_batch_size), **plan
        )

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if no such masks exist on the token grid."""
        if mask is not None:
            mask.validate(self.token_grid)

    def pretrain_collate(self, mask: MaskGenerator | None, seed: int) -> PretrainCollate:
        """Views to a batch with masks. Raises ValueError if no such masks exist on the token grid."""
        self.check_mask(mask)
        return PretrainCollate(self.modality, mask, self.token_grid, seed)

    def assets(self) -> dict[str, str]:
        """Return contents of files that belong to an encoder, as new values of this data's keys."""
        return {}
