"""Keys of samples: index, epoch and random generator."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class RandomStream(IntEnum):
    """Purpose of a random generator; generators of different streams are independent."""

    ORDER = 1
    VIEW = 2  # a sample's augmentation: crop, flip
    MASK = 3


def sample_rng(seed: int, epoch: int, index: int, stream: RandomStream) -> np.random.Generator:
    """Return the generator for one sample in one epoch, the same in every process.

    Args:
        seed: the run's data seed, >= 0.
        epoch: passes over the data set completed before this one.
        index: the sample's number in the data set.
        stream: what the numbers are drawn for.
    """
    # The stream goes first: it is never 0, and SeedSequence takes trailing zeros for absent.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((int(stream), seed, epoch, index))))


class SampleKey(NamedTuple):
    """Key of one sample of a map-style data set: its number and the epoch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs


class ClipKey(NamedTuple):
    """Key of one sample of a data set with samples of different lengths.

    Attributes:
        epoch: passes over the data set completed before this one.
        index: the sample's number in the data set.
        length: length to crop the sample to, the same for all samples of an optimizer step.
        step_size: samples, or the sum of their weights, of that optimizer step.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    length: int
    step_size: int
