"""Units of batches of labelled samples: samples, or seconds of audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from d2v.data.batching import BatchSplit, split_batch, split_seconds
from d2v.data.length_sampler import LengthSampler
from d2v.data.samplers import StreamSampler
from d2v.data.source import Source


class Batching(Protocol):
    """Protocol of units of batches of labelled samples."""

    @property
    def unit(self) -> str:
        """Unit of ``global_batch_size``."""

    def size(self, source: Source[object]) -> float:
        """The samples of a source, in ``unit``."""

    def split(self, source: Source[object], batch: float, micro_batch: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation. Raises ValueError if the global batch cannot be spread."""

    def sampler(
        self, source: Source[object], seed: int, split: BatchSplit, **plan: int
    ) -> StreamSampler | LengthSampler:
        """Batches of keys; ``plan`` are the arguments of a :class:`StepPlan`."""


@dataclass(frozen=True)
class InSamples:
    """Batches of a number of samples."""

    unit: ClassVar[str] = "samples"

    def size(self, source: Source[object]) -> float:
        """Number of samples."""
        return len(source)

    def split(self, source: Source[object], batch: float, micro_batch: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation (:func:`d2v.data.batching.split_batch`)."""
        return split_batch(batch, micro_batch, world_size)

    def sampler(self, source: Source[object], seed: int, split: BatchSplit, **plan: int) -> StreamSampler:
        """Batches of SampleKeys."""
        return StreamSampler(micro_batch_size=int(split.micro_batch_size), num_samples=len(source), seed=seed, **plan)


@dataclass(frozen=True)
class InSeconds:
    """Batches of seconds, of clips of about the same length, padded to the longest.

    Attributes:
        sample_rate: units of the source's ``lengths`` in a second.
        pool_size: of the :class:`LengthSampler`.
    """

    unit: ClassVar[str] = "seconds"
    sample_rate: int
    pool_size: int = 0

    def size(self, source: Source[object]) -> float:
        """Seconds of all clips."""
        return float(_lengths(source).sum()) / self.sample_rate

    def split(self, source: Source[object], batch: float, micro_batch: float | None, world_size: int) -> BatchSplit:
        """Derive gradient accumulation (:func:`d2v.data.batching.split_seconds`)."""
        return split_seconds(batch, micro_batch, world_size, float(_lengths(source).max()) / self.sample_rate)

    def sampler(self, source: Source[object], seed: int, split: BatchSplit, **plan: int) -> LengthSampler:
        """Batches of ClipKeys."""
        letters = [len(source.label(i)) for i in range(len(source))]  # type: ignore[arg-type]  # of transcripts
        return LengthSampler(
            lengths=_lengths(source),
            step_length=round(split.global_batch_size * self.sample_rate),
            seed=seed,
            pool_size=self.pool_size,
            crop=False,
            weights=np.array(letters),
            **plan,
        )


def _lengths(source: Source[object]) -> np.ndarray:
    return np.asarray(source.lengths)  # type: ignore[attr-defined]  # sources counted in seconds have it
