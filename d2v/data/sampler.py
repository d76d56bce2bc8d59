"""Which samples a run reads, in which order, and with which randomness; the same for every modality.

A run reads one endless stream of samples. Position n of the stream belongs to epoch ``n // num_samples`` and is the
``n % num_samples``-th sample of that epoch's permutation. Micro-batch b of rank r is the run of ``micro_batch_size``
positions that starts at ``(b * world_size + r) * micro_batch_size``, so an optimizer step covers the same positions
however its global batch is split over devices and accumulation, and a resumed run goes on where it stopped.
``LengthSampler`` does the same for samples of different lengths, step by step.

We deviate from torch's DistributedSampler on purpose: it pads or drops samples at every epoch's end, and its order
depends on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import NamedTuple

import numpy as np


class RandomStream(IntEnum):
    """What a random generator is for: generators of different streams are independent."""

    ORDER = 1
    VIEW = 2  # a sample's augmentation: crop, flip
    MASK = 3


def sample_rng(seed: int, epoch: int, index: int, stream: RandomStream) -> np.random.Generator:
    """A generator of its own for one sample in one epoch, whichever process asks for it.

    Args:
        seed: the run's data seed, >= 0.
        epoch: passes over the data set completed before this one.
        index: the sample's number in the data set.
        stream: what the numbers are drawn for.
    """
    # The stream goes first: it is never 0, and SeedSequence takes trailing zeros for absent.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((int(stream), seed, epoch, index))))


class SampleKey(NamedTuple):
    """What a map-style data set needs to know to make one sample: which one, and in which epoch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is spread over ``world_size`` devices and ``accumulate`` micro-batches on each.

    Attributes:
        micro_batch_size: samples, or seconds of audio, on a device at a time.
        accumulate: micro-batches of an optimizer step on a device.
        world_size: devices.
    """

    micro_batch_size: float
    accumulate: int
    world_size: int

    @property
    def global_batch_size(self) -> float:
        """Samples, or seconds of audio, of an optimizer step over all devices."""
        return self.micro_batch_size * self.accumulate * self.world_size


def split_batch(global_batch_size: int, micro_batch_size: int | None, world_size: int) -> BatchSplit:
    """Derive gradient accumulation for batches that are counted in samples.

    Args:
        global_batch_size: samples per optimizer step, over all devices; what a recipe fixes.
        micro_batch_size: at most so many samples on a device at a time; None for all of its share at once.
        world_size: devices.

    Raises:
        ValueError: the global batch cannot be spread evenly.
    """
    for key, value in (("global_batch_size", global_batch_size), ("micro_batch_size", micro_batch_size)):
        if value is not None and value != int(value):
            raise ValueError(f"{key}={value}: this data counts samples; give a whole number")
    if global_batch_size < 1 or global_batch_size % world_size:
        below = max(1, global_batch_size // world_size) * world_size
        raise ValueError(
            f"global_batch_size={global_batch_size} cannot be spread over {world_size} devices; "
            f"choose a multiple, such as {below}"
        )
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size}: must be at least 1, or null for no accumulation")
    share = int(global_batch_size) // world_size
    limit = share if micro_batch_size is None else min(int(micro_batch_size), share)
    micro = next(size for size in range(limit, 0, -1) if share % size == 0)
    return BatchSplit(micro, share // micro, world_size)


def check_seconds_fit(
    global_batch_size: float, micro_batch_size: float | None, world_size: int, longest: float
) -> None:
    """Raise ValueError if a device's share of a batch, or a micro-batch, does not hold the longest clip."""
    share = global_batch_size / world_size
    if share < longest:
        raise ValueError(
            f"global_batch_size={global_batch_size:g} seconds are {share:g} for each of {world_size} devices, but "
            f"a clip takes up to {longest:g}: choose at least {longest * world_size:g}, or lower data.max_seconds"
        )
    if micro_batch_size is not None and micro_batch_size < longest:
        raise ValueError(
            f"micro_batch_size={micro_batch_size:g} seconds: a clip takes up to {longest:g}; choose at least that, "
            "or lower data.max_seconds"
        )


def split_seconds(
    global_batch_size: float, micro_batch_size: float | None, world_size: int, longest: float
) -> BatchSplit:
    """Derive gradient accumulation for batches that are counted in seconds of audio.

    Args:
        global_batch_size: seconds per optimizer step, over all devices; what a recipe fixes.
        micro_batch_size: so many seconds on a device at a time, on average over an optimizer step: where its clips
            cannot be dealt evenly, some micro-batches hold one more than others. None for all of its share at once.
        world_size: devices.
        longest: seconds that a clip takes at most.

    Raises:
        ValueError: a device's share, or a micro-batch, does not hold the longest clip.
    """
    check_seconds_fit(global_batch_size, micro_batch_size, world_size, longest)
    share = global_batch_size / world_size
    accumulate = 1 if micro_batch_size is None else int(-(-share // micro_batch_size))
    most = int(whole(global_batch_size / longest) // world_size)  # micro-batches that a longest clip each fits
    if accumulate > most:
        raise ValueError(
            f"micro_batch_size={micro_batch_size:g} seconds: {global_batch_size:g} in parts of that size leave "
            f"some of {world_size} devices x {accumulate} without a clip of {longest:g}; choose at least "
            f"{math.ceil(share / most)}, or lower data.max_seconds"
        )
    return BatchSplit(share / accumulate, accumulate, world_size)


def whole(ratio: float) -> int:
    """Rounded down, but not for the last bits of a division."""
    return int(ratio + 1e-9)


@dataclass(kw_only=True, eq=False)
class StepPlan:
    """Which micro-batches this rank makes, of a run of optimizer steps.

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
    """Which positions of the endless stream each micro-batch of this rank covers.

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
    _order: _Permutations = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order = _Permutations(self.num_samples, self.seed)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in range(self.start_batch, self.num_batches):
            yield [self.key_at(position) for position in self.positions(batch)]

    def key_at(self, position: int) -> SampleKey:
        """The sample at a position of the stream."""
        return self._order[position]


class _Permutations:
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
        """(stop - start, 2) int64 epochs and indices."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.num_samples)
            _ = self[start]  # makes this epoch's order
            indices = self._order[place : place + stop - start]
            parts.append(np.stack([np.full(len(indices), epoch), indices], axis=1))
            start += len(indices)
        return np.concatenate(parts)


class ClipKey(NamedTuple):
    """What a data set of samples of different lengths needs to know to make one.

    Attributes:
        epoch: passes over the data set completed before this one.
        index: the sample's number in the data set.
        length: what the sample is to be cropped to, the same for all of an optimizer step.
        step_size: samples, or the sum of their weights, of that optimizer step.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    length: int
    step_size: int


@dataclass(kw_only=True, eq=False)
class LengthSampler(StepPlan):
    """Batch sampler for samples of different lengths: an optimizer step holds samples of about the same length.

    The endless stream of permuted samples is cut into pools of ``pool_size``; a pool is sorted by length and cut into
    steps, which are shuffled. A step's samples are cropped to its shortest and hold at most ``step_length`` in all.
    What is left of a pool, fewer than a step of the longest samples would hold, goes into the next one. A step is dealt
    evenly to micro-batches and ranks, so steps do not depend on how many there are.

    Attributes:
        lengths: of every sample, in any unit, as far as it is used.
        step_length: most that an optimizer step holds, over all devices, in the same unit.
        seed: with the epoch, it decides the order.
        crop: samples are cropped to the shortest of their step; False: they are padded to its longest, and it is the
            padded length that ``step_length`` limits.
        weights: of every sample, whose sum over an optimizer step is ``ClipKey.step_size``; None: 1 each.
        pool_size: samples that are sorted at a time; larger pools crop less and mix less. 0 for what makes 50
            steps, but no more than there are, or a step would hold a sample several times.

    Raises:
        ValueError: as StepPlan, the data set is empty or the seed negative, or a step of the longest samples holds
            fewer than there are devices and micro-batches.
    """

    lengths: np.ndarray
    step_length: int
    seed: int = 0
    pool_size: int = 0
    crop: bool = True
    weights: np.ndarray | None = None
    _order: _Permutations = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order = _Permutations(len(self.lengths), self.seed)
        parts = self.world_size * self.accumulate
        if self.step_length // int(self.lengths.max()) < parts:
            raise ValueError(
                f"global_batch_size holds {self.step_length // int(self.lengths.max())} of the longest samples, but "
                f"{self.world_size} devices x {self.accumulate} accumulated micro-batches need one each: raise "
                "global_batch_size, or lower data.max_seconds or the number of devices"
            )
        fewest = self.step_length // int(self.lengths.max())
        if self.pool_size < 1:
            self.pool_size = min(len(self.lengths), math.ceil(50 * self.step_length / float(self.lengths.mean())))
        self.pool_size = max(fewest, self.pool_size)

    def __iter__(self) -> Iterator[list[ClipKey]]:
        first_step, last_step = self.start_batch // self.accumulate, self.num_batches // self.accumulate
        step = 0
        for clips, bounds, rng in self._pools():
            order = rng.permutation(len(bounds) - 1)
            for place in order[max(0, first_step - step) : last_step - step]:
                keys = self._keys(clips[bounds[place] : bounds[place + 1]])
                parts = np.array_split(np.arange(len(keys)), self.accumulate * self.world_size)
                for part in parts[self.rank :: self.world_size]:
                    yield [keys[i] for i in part]
            step += len(order)
            if step >= last_step:
                return

    def _pools(self) -> Iterator[tuple[np.ndarray, list[int], np.random.Generator]]:
        """Every pool: (n, 2) epochs and indices of its samples, ascending by length, and the bounds of its steps."""
        fewest = self.step_length // int(self.lengths.max())
        rest = np.empty((0, 2), dtype=np.int64)
        for pool in count():
            clips = np.concatenate([rest, self._order.slice(pool * self.pool_size, (pool + 1) * self.pool_size)])
            lengths = self.lengths[clips[:, 1]]
            rng = sample_rng(self.seed, pool, 1, RandomStream.ORDER)
            clips = clips[np.lexsort((rng.random(len(clips)), lengths))]  # ties broken at random
            lengths = self.lengths[clips[:, 1]]
            bounds = [0]
            while len(clips) - bounds[-1] >= fewest:
                bounds.append(bounds[-1] + self._step_count(lengths[bounds[-1] :]))
            rest = clips[bounds[-1] :]
            yield clips, bounds, rng

    def _step_count(self, lengths: np.ndarray) -> int:
        """How many of these samples, ascending by length, the next step takes."""
        if self.crop:
            return min(len(lengths), self.step_length // int(lengths[0]))
        return int((np.arange(1, len(lengths) + 1) * lengths <= self.step_length).sum())

    def _keys(self, clips: np.ndarray) -> list[ClipKey]:
        """A step's keys, in random order; the generator is the step's own, whatever steps were made before."""
        length = int(self.lengths[clips[:, 1]].min())
        own = np.random.Generator(np.random.PCG64([int(x) for x in clips[0]] + [self.seed]))
        step_size = len(clips) if self.weights is None else int(self.weights[clips[:, 1]].sum())
        return [ClipKey(int(e), int(i), length, step_size) for e, i in own.permutation(clips)]
