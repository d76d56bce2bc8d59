"""Lengths of texts and of blocks of tokens, for ``d2v check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from d2v.data.measures import Measures, spread
from d2v.data.source import Source, T


class TextMeasures(Measures[T]):
    """Measurements of texts.

    Args:
        source: the texts, or blocks of them.
        unit: of a length, in the plural.
        length: length of a sample.
        bad: documents that cannot be read, as "name: reason".
        total: documents; None for the samples of ``source``.
    """

    def __init__(
        self,
        source: Source[T],
        unit: str,
        length: Callable[[T], int],
        bad: Sequence[str] = (),
        total: int | None = None,
    ) -> None:
        super().__init__(source, bad, total)
        self._unit = unit
        self._length = length
        self._lengths: list[int] = []

    def add(self, index: int, sample: T) -> None:
        """Note the length."""
        self._lengths.append(self._length(sample))

    def sizes(self) -> list[str]:
        """Lengths."""
        return [f"lengths {spread(self._lengths)} {self._unit}"]
