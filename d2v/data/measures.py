"""Measurements of the samples of one source, for ``d2v check``; every modality has a subclass in its package."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Generic

from d2v.data.source import Source, T


class Measures(Generic[T]):
    """Base class of measurements, sufficient for samples without a size.

    Args:
        source: the samples.
        bad: samples already found unreadable when the source was listed, as "name: reason".
        total: size of the data set for the limit of bad samples; None for the samples of ``source`` plus ``bad``.
    """

    def __init__(self, source: Source[T], bad: Sequence[str] = (), total: int | None = None) -> None:
        self.source = source
        self.bad = tuple(bad)
        self.total = len(source) + len(self.bad) if total is None else total

    def add(self, index: int, sample: T) -> None:
        """Measure a decoded sample. Raises BadSample if no input can be made of it."""

    def sizes(self) -> list[str]:
        """Lines about the sizes of at least one sample."""
        return []

    def suggestions(self) -> list[str]:
        """Lines about settings that would suit the data."""
        return []


def spread(values: Sequence[float]) -> str:
    """Format lowest, highest and median of at least one value: "2 to 5 (median 3)"."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:g} to {high:g} (median {middle:g})" if low < high else f"{low:g}"
