"""Batches of clips of similar length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from d2v.data.keys import ClipKey, RandomStream, sample_rng
from d2v.data.samplers import Permutations, StepPlan


@dataclass(kw_only=True, eq=False)
class LengthSampler(StepPlan):
    """Batch sampler for samples of different lengths: an optimizer step holds samples of about the same length.

    The endless stream of permuted samples is cut into pools of ``pool_size``; a pool is sorted by length and cut into
    steps, which are shuffled. A step's samples are cropped to its shortest and hold at most ``step_length`` in all.
    What is left of a pool, fewer than a step of the longest samples would hold, goes into the next one. A step is dealt
    evenly to micro-batches and ranks, so steps do not depend on how many there are.

    Attributes:
        lengths: length of every sample, up to its largest use, in any unit.
        step_length: largest total length of an optimizer step, over all devices, in the same unit.
        seed: seed of the order, together with the epoch.
        crop: samples are cropped to the shortest of their step; False: they are padded to its longest, and it is the
            padded length that ``step_length`` limits.
        weights: weight of every sample; the sum over an optimizer step is ``ClipKey.step_size``; None: 1 each.
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
    _order: Permutations = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order = Permutations(len(self.lengths), self.seed)
        parts = self.world_size * self.accumulate
        if self.step_length // int(self.lengths.max()) < parts:
            raise ValueError(
                f"global_batch_size holds {self.step_length // int(self.lengths.max())} of the longest samples, but "
                f"{self.world_size} devices x {self.accumulate} accumulated micro-batches need one each: raise "
                "global_batch_size, or lower max_seconds or the number of devices"
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
        """Yield pools: (n, 2) epochs and indices of the samples, ascending by length, and the bounds of the steps."""
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
        """Return the number of these samples, ascending by length, that the next step takes."""
        if self.crop:
            return min(len(lengths), self.step_length // int(lengths[0]))
        return int((np.arange(1, len(lengths) + 1) * lengths <= self.step_length).sum())

    def _keys(self, clips: np.ndarray) -> list[ClipKey]:
        """A step's keys, in random order; the generator is the step's own, whatever steps were made before."""
        length = int(self.lengths[clips[:, 1]].min())
        own = np.random.Generator(np.random.PCG64([int(x) for x in clips[0]] + [self.seed]))
        step_size = len(clips) if self.weights is None else int(self.weights[clips[:, 1]].sum())
        return [ClipKey(int(e), int(i), length, step_size) for e, i in own.permutation(clips)]
