"""Order of samples in a run, and their randomness; the same for every modality.

A run reads one endless stream of samples. Position n of the stream belongs to epoch ``n // num_samples`` and is the
``n % num_samples``-th sample of that epoch's permutation. Micro-batch b of rank r is the run of ``micro_batch_size``
positions that starts at ``(b * world_size + r) * micro_batch_size``, so an optimizer step covers the same positions
however its global batch is split over devices and accumulation, and a resumed run goes on where it stopped.
``LengthSampler`` does the same for samples of different lengths, step by step.

We deviate from torch's DistributedSampler on purpose: it pads or drops samples at every epoch's end, and its order
depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from d2v.data.keys import RandomStream, SampleKey, sample_rng


@dataclass(kw_only=True, eq=False)
class StepPlan:
    """Micro-batches of one rank in a run of optimizer steps.

    Attributes:
        num_batches: micro-batches of this rank in the whole run, consumed ones included.
        start_batch: micro-batches already consumed; iteration starts there.
        rank: this process, in [0, world_size).
        world_size: processes (devices) that share the stream.
        accumulate: micro-batches an optimizer step. Runs start and stop between optimizer steps, so ``num_batches`` and
            ``start_batch`` must be multiples of it.

    Raises:
        ValueError: a size is not positive, ``rank`` is no rank, or a count is not a whole number of optimizer steps.
    """

    num_batches: int
    start_batch: int = 0
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("world_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank}: must be in [0, world_size={self.world_size})")
        if self.num_batches < 0 or self.num_batches % self.accumulate:
            raise ValueError(
                f"num_batches={self.num_batches}: must be a multiple of accumulate={self.accumulate}, "
                "a whole number of optimizer steps"
            )
        self.skip_to(self.start_batch)

    def skip_to(self, start_batch: int) -> None:
        """Let the next iteration start at this micro-batch.

        Args:
            start_batch: micro-batches of this rank already consumed; a whole number of optimizer steps.

        Raises:
            ValueError: it lies outside the run or inside an optimizer step.
        """
        if not 0 <= start_batch <= self.num_batches or start_batch % self.accumulate:
            raise ValueError(
                f"start_batch={start_batch}: must be a multiple of accumulate={self.accumulate} "
                f"in [0, num_batches={self.num_batches}]"
            )
        self.start_batch = start_batch

    def __len__(self) -> int:
        # Consumed micro-batches count too: the trainer's progress counters, once resumed, do so as well.
        return self.num_batches


@dataclass(kw_only=True, eq=False)
class BatchPlan(StepPlan):
    """Positions of the endless stream that each micro-batch of this rank covers.

    Attributes:
        micro_batch_size: samples a micro-batch, on one device. Accumulation does not move any position.

    Raises:
        ValueError: as StepPlan, or the micro-batch is empty.
    """

    micro_batch_size: int

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={self.micro_batch_size}: must be at least 1")
        super().__post_init__()

    def positions(self, batch: int) -> range:
        """Stream positions of micro-batch ``batch`` of this rank."""
        start = (batch * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


@dataclass(kw_only=True, eq=False)
class StreamSampler(BatchPlan):
    """Batch sampler over an endless stream of samples, to give to a ``DataLoader`` as ``batch_sampler``.

    Every sample comes exactly once per epoch, over all ranks together; a batch may reach into the next epoch (or
    several), so a data set may be smaller than a batch.

    Attributes:
        num_samples: size of the data set.
        seed: with the epoch, it decides the permutation.

    Raises:
        ValueError: as BatchPlan, or the data set is empty or the seed negative.
    """

    num_samples: int
    seed: int = 0
    _order: Permutations = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order = Permutations(self.num_samples, self.seed)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in range(self.start_batch, self.num_batches):
            yield [self.key_at(position) for position in self.positions(batch)]

    def key_at(self, position: int) -> SampleKey:
        """The sample at a position of the stream."""
        return self._order[position]


class Permutations:
    """The endless stream of samples: one permutation an epoch.

    Raises:
        ValueError: the data set is empty or the seed negative.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: the data set is empty")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> SampleKey:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:  # positions ascend: the last epoch's is all one needs
            self._epoch = epoch
            self._order = sample_rng(self.seed, epoch, 0, RandomStream.ORDER).permutation(self.num_samples)
        return SampleKey(epoch, int(self._order[place]))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start, 2) int64 epochs and indices."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.num_samples)
            _ = self[start]  # makes this epoch's order
            indices = self._order[place : place + stop - start]
            parts.append(np.stack([np.full(len(indices), epoch), indices], axis=1))
            start += len(indices)
        return np.concatenate(parts)
