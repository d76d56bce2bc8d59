"""Batches from streams, in an order that does not depend on the number of workers.

Every worker reads all of the data; in :mod:`d2v.data.shards` every worker reads a share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from d2v.data.bad_samples import NoSamples
from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.data.samplers import BatchPlan
from d2v.data.source import MAX_TRIES, RandomView, Sample, first_good
from d2v.types import Batch

S = TypeVar("S", bound="Stream")
B = TypeVar("B")


class Stream(Protocol):
    """Samples in a fixed order, decoded on request; iteration is one pass over the data.

    A record may have an attribute ``skipped``: samples skipped before it, as "name: reason"; and, if records are made
    from others (blocks of documents), ``num_read``: the number of documents read since the previous record.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def decode(self, record: Any) -> Any:
        """The decoded sample of a record that iteration gave. Raises BadSample."""

    def name(self, index: int) -> str:
        """Return the name of the ``index``-th record in messages."""


class Row(NamedTuple):
    """Record of a stream with its key."""

    key: SampleKey
    record: Any


def record_notes(record: Any) -> tuple[tuple[str, ...], int | None]:
    """Return samples skipped before a record, and the number of documents read for it, or None."""
    return getattr(record, "skipped", ()), getattr(record, "num_read", None)


class RowBatches(IterableDataset[B], Generic[S, B]):
    """Base class of complete batches from a stream; for ``DataLoader(batch_size=None)``.

    Abstract: a subclass defines ``__iter__``.

    Args:
        stream: the samples, in the order they are stored.
        view: makes the views.
        collate: makes the batches.
        seed: the run's data seed.
        plan: which micro-batches this rank makes.
        shuffle_buffer: rows, still encoded, that every worker holds to shuffle them. 1 keeps the order.
    """

    def __init__(
        self,
        stream: S,
        view: RandomView[Any],
        collate: Callable[[Sequence[Sample]], Batch],
        seed: int,
        plan: BatchPlan,
        shuffle_buffer: int,
    ) -> None:
        self.stream = stream
        self.view = view
        self.collate = collate
        self.seed = seed
        self.plan = plan
        self.shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        return len(self.plan)

    def _worker(self) -> tuple[int, int]:
        """Return the number of this worker, and how many there are."""
        info = get_worker_info()
        return (0, 1) if info is None else (info.id, info.num_workers)

    def _view(self, row: Row) -> Tensor:
        return self.view(self.stream.decode(row.record), sample_rng(self.seed, *row.key, RandomStream.VIEW))


class StreamBatches(RowBatches[Stream, Batch]):
    """Batches from a stream that every worker reads whole.

    Worker w of W makes this rank's micro-batches w, w + W, ...: the order of batches does not depend on W. Every worker
    reads the whole stream, but decodes only what it needs: not what other workers and ranks make, nor what was consumed
    before a resume. A resumed run reads at most one epoch more than it needs, to count the rows.

    Shuffling draws a row of the buffer at random, and the next one read takes its place.
    """

    def __iter__(self) -> Iterator[Batch]:
        worker, num_workers = self._worker()
        batches = range(self.plan.start_batch + worker, self.plan.num_batches, num_workers)
        if not batches:
            return
        first = self.plan.positions(batches[0]).start
        window = _Window(self._rows(first), first)
        for batch in batches:
            positions = self.plan.positions(batch)
            window.forget_before(positions.start)
            yield self.collate([self._sample(window, position) for position in positions])

    def _sample(self, window: _Window, position: int) -> Sample:
        """The view at a position, or at the next one that can be read."""
        good, view, skipped = first_good(
            islice(count(position), MAX_TRIES),
            lambda candidate: self._view(window[candidate]),
            lambda candidate: self.stream.name(window[candidate].key.index),
        )
        row = window[good]
        more, num_read = record_notes(row.record)
        return Sample(view, row.key, skipped=skipped + more, num_read=num_read)

    def _rows(self, first: int) -> Iterator[Row]:
        """The endless stream from position ``first`` on."""
        epoch, to_skip = 0, first
        while True:
            num_rows = 0
            for row in self._epoch(epoch):
                num_rows += 1
                if num_rows > to_skip:
                    yield row
            if num_rows == 0:
                raise NoSamples("path: the stream has no rows; check path=... and split=...")
            whole_epochs, to_skip = divmod(max(0, to_skip - num_rows), num_rows)
            epoch += 1 + whole_epochs

    def _epoch(self, epoch: int) -> Iterator[Row]:
        rows = (Row(SampleKey(epoch, number), record) for number, record in enumerate(self.stream))
        return _shuffle(rows, self.shuffle_buffer, sample_rng(self.seed, epoch, 0, RandomStream.ORDER))


def _shuffle(rows: Iterable[Row], buffer_size: int, rng: np.random.Generator) -> Iterator[Row]:
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(rng.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


class _Window:
    """Window over a stream: rows by position, read ahead on request, until they are dropped."""

    def __init__(self, rows: Iterator[Row], first: int) -> None:
        self._rows = rows
        self._first = first
        self._held: deque[Row] = deque()

    def __getitem__(self, position: int) -> Row:
        missing = position - self._first + 1 - len(self._held)
        self._held.extend(islice(self._rows, max(0, missing)))
        return self._held[position - self._first]

    def forget_before(self, position: int) -> None:
        while self._first < position:
            if self._held:
                self._held.popleft()
            else:
                next(self._rows)
            self._first += 1
