"""Sharded streams: every worker of every rank reads its own share.

A reader is a worker of a rank. It reads its share repeatedly, a buffer of rows at a time, and shuffles each buffer by a
generator seeded from (seed, pass, reader, buffer). Its position is that of the buffer in the share and the place in the
buffer, so a resumed run with the same number of readers neither repeats nor loses a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

from d2v.data.bad_samples import NoSamples
from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.data.samplers import BatchPlan
from d2v.data.source import MAX_TRIES, RandomView, Sample, first_good
from d2v.data.streams import Row, RowBatches, Stream, StreamBatches, record_notes
from d2v.types import Batch

SHARDED: Literal["sharded"] = "sharded"
Streaming = bool | Literal["sharded"]  # False: not; True: every reader reads all; or every reader reads a share


class Share(Protocol):
    """Records of one reader; iteration continues from its position to the end of a pass."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Position after the last record, as plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration after that record."""


@runtime_checkable
class ShardedStream(Stream, Protocol):
    """Stream that can be divided among readers."""

    @property
    def sharded(self) -> bool:
        """Return whether it is to be."""

    def share(self, reader: int, num_readers: int) -> Share:
        """The records of one of ``num_readers``; together they read every record once."""


class Position(TypedDict):
    """Position of a reader, as plain containers.

    Attributes:
        epoch: passes over its share before this one.
        rows: records of this pass before the buffer.
        share: position of the share at the buffer's start.
        place: number of consumed records of the buffer.
    """

    epoch: int
    rows: int
    share: dict[str, Any] | None
    place: int


START = Position(epoch=0, rows=0, share=None, place=0)


class ReaderBatch(NamedTuple):
    """Batch with the position of its reader after it."""

    batch: Batch
    position: Position


class ShardedBatches(RowBatches[ShardedStream, ReaderBatch]):
    """Batches from a stream that is shared out.

    Micro-batch b of a rank is made by its worker ``b % num_workers``, from that worker's share alone.

    Attributes:
        positions: of this rank's readers, where the run resumes; None to start.
    """

    positions: Sequence[Position] | None = None

    def __iter__(self) -> Iterator[ReaderBatch]:
        worker, num_workers = self._worker()
        own = (self.plan.start_batch + worker) % num_workers  # the loader asks worker 0 first, wherever it resumes
        reader = _Reader(
            self.stream,
            self.plan.rank * num_workers + own,
            self.plan.world_size * num_workers,
            self.seed,
            self.shuffle_buffer,
            START if self.positions is None else self.positions[own],
        )
        rows = iter(reader)
        for _ in range(self.plan.start_batch + worker, self.plan.num_batches, num_workers):
            batch = self.collate([self._sample(rows, reader) for _ in range(self.plan.micro_batch_size)])
            yield ReaderBatch(batch, reader.position)

    def _sample(self, rows: Iterator[Row], reader: _Reader) -> Sample:
        """The view of the next row that can be read."""
        row, view, skipped = first_good(islice(rows, MAX_TRIES), self._view, reader.name)
        more, num_read = record_notes(row.record)
        if num_read is None:
            num_read = 1 + len(skipped)  # the rows that this one stands for were read, too
        return Sample(view, row.key, skipped=skipped + more, num_read=num_read)


def stream_batches(
    stream: Stream | ShardedStream,
    view: RandomView[Any],
    collate: Callable[[Sequence[Sample]], Batch],
    seed: int,
    plan: BatchPlan,
    shuffle_buffer: int,
) -> StreamBatches | ShardedBatches:
    """Batches from a stream that is read whole by every reader, or shared out; arguments as :class:`RowBatches`."""
    if isinstance(stream, ShardedStream) and stream.sharded:
        return ShardedBatches(stream, view, collate, seed, plan, shuffle_buffer)
    return StreamBatches(stream, view, collate, seed, plan, shuffle_buffer)


class _Reader:
    """Endless reader of one share, a buffer at a time; ``position`` is that after the last row."""

    def __init__(
        self, stream: ShardedStream, reader: int, num_readers: int, seed: int, shuffle_buffer: int, start: Position
    ) -> None:
        self.stream = stream
        self.reader, self.num_readers = reader, num_readers
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.position = start

    def name(self, row: Row) -> str:
        """The row's number in the share."""
        number = row.key.index // self.num_readers
        return f"{self.stream.name(number)} of share {self.reader + 1} of {self.num_readers}"

    def __iter__(self) -> Iterator[Row]:
        while True:
            yield from self._pass()
            if self.position["rows"] == 0:
                raise NoSamples(
                    f"streaming=sharded: share {self.reader + 1} of {self.num_readers} holds no row; check "
                    "path=... and split=..., or lower num_workers or the number of devices"
                )
            self.position = Position(epoch=self.position["epoch"] + 1, rows=0, share=None, place=0)

    def _pass(self) -> Iterator[Row]:
        """Rest of a pass over the share."""
        epoch, first, place = self.position["epoch"], self.position["rows"], self.position["place"]
        share = self.stream.share(self.reader, self.num_readers)
        if self.position["share"] is not None:
            share.load_state_dict(self.position["share"])
        records = iter(share)
        while True:
            start = share.state_dict()
            buffer = list(islice(records, self.shuffle_buffer))
            if not buffer:
                return
            index = first * self.num_readers + self.reader  # of the buffer's first row, no other reader's
            order = sample_rng(self.seed, epoch, index, RandomStream.ORDER).permutation(len(buffer))
            for used in range(place, len(buffer)):
                row = int(order[used])
                self.position = Position(epoch=epoch, rows=first, share=start, place=used + 1)
                yield Row(SampleKey(epoch, index + row * self.num_readers), buffer[row])
            first, place = first + len(buffer), 0
            self.position = Position(epoch=epoch, rows=first, share=share.state_dict(), place=0)
