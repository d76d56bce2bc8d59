"""torch data sets over sources of any modality: what runs in the data workers.

Everything random in a sample depends on (seed, epoch, sample id) alone, so the batches of a run are the same whatever
the number of workers. A sample that cannot be read is replaced by the next one that can, as if that had been drawn, and
reported in ``Batch.skipped``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2v.data.bad_samples import BadSample
from d2v.data.batching import BatchSplit, split_batch
from d2v.data.contents import describe_sources
from d2v.data.keys import ClipKey, RandomStream, SampleKey, sample_rng
from d2v.data.samplers import StreamSampler
from d2v.data.source import MAX_TRIES, FixedView, RandomView, Sample, Source, first_good, skipped_in
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, TokenMask


class PretrainSamples(Dataset[Sample]):
    """One random view of every sample, by the keys of a sampler.

    Args:
        source: the samples.
        view: makes the view.
        seed: the run's data seed.
    """

    def __init__(self, source: Source, view: RandomView, seed: int) -> None:
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
        found, view, skipped = first_good(turn, make, self.source.name)
        return Sample(view, SampleKey(epoch, found), skipped=skipped)


class EvalSamples(Dataset[Sample]):
    """The one evaluation view of every sample, with its label, by number.

    Args:
        source: the samples.
        view: makes the view.
    """

    def __init__(self, source: Source, view: FixedView) -> None:
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


def eval_loader(data: Any, split: str, batch_size: int | None = None, num_workers: int = 0) -> DataLoader[Any]:
    """Every sample of a split of a data set, once: see :func:`sorted_loader`.

    Args:
        data: with ``eval_dataset``, ``eval_collate`` and ``eval_batch_size``.
        split: of ``eval_dataset``.
        batch_size: samples a batch; None for the data's own.
        num_workers: processes that load.
    """
    size = data.eval_batch_size if batch_size is None else batch_size
    return sorted_loader(data.eval_dataset(split), size, data.eval_collate, num_workers)


def sorted_loader(
    samples: EvalSamples,
    batch_size: int,
    collate: Callable[[Sequence[Sample]], Batch],
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Batches of every sample, once, or of one process's share of them: every ``world_size``-th batch.

    Where samples differ in length, a batch holds samples of about the same, or most of the work would be on padding:
    they come sorted by it. ``Batch.sample_ids`` tells which is which.

    Raises:
        ValueError: ``batch_size`` is no whole number from 1 on.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give a whole number of samples, at least 1, or auto")
    lengths = getattr(samples.source, "lengths", None)
    order = list(range(len(samples))) if lengths is None else np.argsort(lengths, kind="stable").tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return DataLoader(
        samples,
        batch_sampler=batches[rank::world_size],
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=leave_interrupts_to_the_parent,
    )


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """For data workers: a Ctrl-C reaches every process of the group, and the parent still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class PretrainCollate:
    """Views of one shape to a batch, with every sample's masks.

    Attributes:
        modality: of the batch.
        mask_generator: draws the masks.
        token_grid: the shape in which the tokens of a sample lie.
        seed: the run's data seed.
    """

    modality: str
    mask_generator: MaskGenerator
    token_grid: tuple[int, ...]
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of B views with B * num_masks masks, sample-major."""
        inputs = torch.stack([sample.inputs for sample in samples if sample.inputs is not None])
        rngs = [sample_rng(self.seed, *sample.key, RandomStream.MASK) for sample in samples]
        mask = torch.from_numpy(self.mask_generator(self.grid(inputs), rngs))
        return Batch(
            modality=self.modality,
            inputs=inputs,
            sample_ids=torch.tensor([sample.key.index for sample in samples]),
            mask=TokenMask.from_bool(mask, self.mask_generator.num_masks),
            skipped=skipped_in(samples),
            step_size=samples[0].step_size,
            num_read=None if samples[0].num_read is None else sum(sample.num_read or 0 for sample in samples),
        )

    def grid(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape in which the tokens of a sample of these inputs lie."""
        return self.token_grid


class EqualSamples:
    """Base class of data whose samples have equally many tokens: a batch is a number of samples.

    Abstract: a data class inherits it and adds ``modality``, ``token_grid``, ``size`` and the data sets.
    """

    modality: ClassVar[str]
    batch_unit: ClassVar[str] = "samples"
    tokens_are: ClassVar[str] = "each"

    @property
    def streaming(self) -> bool:
        """Return whether ``pretrain_stream`` is to be used, not ``pretrain_dataset``."""
        return False

    @property
    def token_grid(self) -> tuple[int, ...]:
        """The shape in which the tokens of a sample lie."""
        raise NotImplementedError("data define token_grid")

    @property
    def size(self) -> float | None:
        """Samples to pretrain on; None for a stream."""
        raise NotImplementedError("data define size")

    def split_batch(self, global_batch_size: int, micro_batch_size: int | None, world_size: int) -> BatchSplit:
        """Derive accumulation (:func:`d2v.data.batching.split_batch`)."""
        return split_batch(global_batch_size, micro_batch_size, world_size)

    def pretrain_sampler(self, seed: int, split: BatchSplit, **plan: int) -> StreamSampler:
        """Batches of SampleKeys."""
        return StreamSampler(
            num_samples=int(self.size or 0), seed=seed, micro_batch_size=int(split.micro_batch_size), **plan
        )

    def pretrain_collate(self, mask: MaskGenerator, seed: int) -> PretrainCollate:
        """Views to a batch with masks. Raises ValueError if no such masks exist on the token grid."""
        mask.validate(self.token_grid)
        return PretrainCollate(self.modality, mask, self.token_grid, seed)

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes, files left out."""
        names = ("train", "probe_train", "val")
        return describe_sources({name: getattr(self, name, None) for name in names})

    def assets(self) -> dict[str, str]:
        """Whole files that must go with an encoder, as values that take the place of this data's keys."""
        return {}
