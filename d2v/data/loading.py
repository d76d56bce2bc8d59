"""Loaders of training batches: worker processes, and a limit on samples that cannot be read."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.source import Sample
from d2v.errors import UserError, without_stack
from d2v.types import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Processes that load.

    Attributes:
        num_workers: how many; 0 loads in the training process.
        pin_memory: batches go into page-locked memory, for a GPU.
    """

    num_workers: int = 0
    pin_memory: bool = False

    def load(self, dataset: Dataset[Any], **how: Any) -> DataLoader[Any]:
        """A ``DataLoader`` with these workers; ``how`` are its further arguments."""
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_interrupts_to_the_parent,
            **how,
        )


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """For data workers: a Ctrl-C reaches every process of the group, and the parent still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainLoader:
    """Batches of one rank; names what they had to skip, and stops the run if it is too much.

    Args:
        batches: the batches.
        bad_samples: counts and limits what cannot be read.
    """

    def __init__(self, batches: Iterable[Batch], bad_samples: BadSampleCounter) -> None:
        self.batches = batches
        self.bad_samples = bad_samples

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while (batch := _next(batches)) is not None:
            num_seen = len(batch.inputs) if batch.num_read is None else batch.num_read
            for entry in self.bad_samples.update(batch.skipped, num_seen):
                log.warning("skipped %s (%d bad so far)", entry, self.bad_samples.num_bad)
            yield batch


def sample_loader(
    dataset: Dataset[Sample],
    sampler: Iterable[Sequence[object]],
    collate: Callable[[Sequence[Sample]], Batch],
    workers: Workers,
    bad_samples: BadSampleCounter,
) -> TrainLoader:
    """Load samples by their keys, a batch for every list of keys of the sampler."""
    return TrainLoader(workers.load(dataset, batch_sampler=sampler, collate_fn=collate), bad_samples)


def stream_loader(stream: IterableDataset[Batch], workers: Workers, bad_samples: BadSampleCounter) -> TrainLoader:
    """Load the batches that a stream makes."""
    return TrainLoader(workers.load(stream, batch_size=None), bad_samples)


def _next(batches: Iterator[Batch]) -> Batch | None:
    """The next batch or None; what a data worker found wrong with the data without the worker's stack trace."""
    try:
        return next(batches, None)
    except UserError as error:
        raise type(error)(without_stack(str(error))) from error
