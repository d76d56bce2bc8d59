"""Loaders of training batches: worker processes, and a limit on samples that cannot be read."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.shards import START, Position, ReaderBatch, ShardedBatches
from d2v.data.source import Sample
from d2v.data.streams import StreamBatches
from d2v.errors import UserError, without_stack
from d2v.types import Batch

log = logging.getLogger(__name__)

_KEPT = 8  # positions of a reader that are remembered


@dataclass(frozen=True)
class Workers:
    """Settings of the data workers.

    Attributes:
        num_workers: number of processes; 0 loads in the training process.
        pin_memory: whether batches are put into page-locked memory, for a GPU.
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
    """Ignore Ctrl-C in data workers, because the parent still needs their batches when it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainLoader:
    """Loader of one rank's batches; logs skipped samples, and stops the run if there are too many.

    Args:
        batches: the batches, from where the run resumes.
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

    def state_dict(self, num_batches: int) -> dict[str, Any]:
        """State for a resume after ``num_batches``: none, their number is enough."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""


class ShardedLoader(TrainLoader):
    """Loader of one rank's batches from a sharded stream; it tracks the positions of the rank's readers.

    Args:
        stream: makes the batches.
        workers: processes that load.
        bad_samples: counts and limits what cannot be read.
    """

    def __init__(self, stream: ShardedBatches, workers: Workers, bad_samples: BadSampleCounter) -> None:
        self.stream = stream
        self.num_readers = max(1, workers.num_workers)
        # Of every reader, after how many batches of the rank it stood where; the trainer takes some in advance.
        self._positions: list[deque[tuple[int, Position]]] = [deque(maxlen=_KEPT) for _ in range(self.num_readers)]
        super().__init__(self._note_positions(workers.load(stream, batch_size=None)), bad_samples)

    def _note_positions(self, loaded: Iterable[ReaderBatch]) -> Iterator[Batch]:
        start = self.stream.plan.start_batch
        if start and self.stream.positions is None:
            raise NoPosition(
                "streaming=sharded: the run that is resumed kept no position in the shards; resume it with the "
                "streaming that it had"
            )
        for number, (batch, position) in enumerate(loaded, start):
            self._positions[number % self.num_readers].append((number + 1, position))
            yield batch

    def state_dict(self, num_batches: int) -> dict[str, Any]:
        """Position of every reader after ``num_batches`` micro-batches of this rank."""
        before = self.stream.positions or [START] * self.num_readers
        return {
            "positions": [
                next((position for number, position in reversed(kept) if number <= num_batches), before[i])
                for i, kept in enumerate(self._positions)
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from these positions.

        Raises:
            NoPosition: there were more or fewer readers.
        """
        positions: list[Position] = state.get("positions", [])
        if len(positions) != self.num_readers:
            raise NoPosition(
                f"num_workers={self.num_readers}: {len(positions)} on each device read the shards of the run that is "
                f"resumed; resume it with num_workers={len(positions)}"
            )
        self.stream.positions = positions


class NoPosition(UserError, RuntimeError):
    """The position of a resumed run in its shards is unknown."""


def sample_loader(
    dataset: Dataset[Sample],
    sampler: Iterable[Sequence[object]],
    collate: Callable[[Sequence[Sample]], Batch],
    workers: Workers,
    bad_samples: BadSampleCounter,
) -> TrainLoader:
    """Load samples by their keys, a batch for every list of keys of the sampler."""
    return TrainLoader(workers.load(dataset, batch_sampler=sampler, collate_fn=collate), bad_samples)


def stream_loader(
    stream: StreamBatches | ShardedBatches, workers: Workers, bad_samples: BadSampleCounter
) -> TrainLoader:
    """Load the batches that a stream makes."""
    if isinstance(stream, ShardedBatches):
        return ShardedLoader(stream, workers, bad_samples)
    return TrainLoader(workers.load(stream, batch_size=None), bad_samples)


def _next(batches: Iterator[Batch]) -> Batch | None:
    """Return the next batch or None; raise errors of data workers about the data without the worker's stack trace."""
    try:
        return next(batches, None)
    except UserError as error:
        raise type(error)(without_stack(str(error))) from error
