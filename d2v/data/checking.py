"""Whole data sets read as training reads them: sizes, formats, classes, all bad samples at once.

``d2v check`` prints what is found here, before a run finds it out sample by sample.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from d2v.data.bad_samples import BadSample, tolerated
from d2v.data.contents import in_words, visible
from d2v.data.measures import Measures
from d2v.data.source import Label, T

_NAMED_CLASSES = 20
_NO_ENDING = "no ending"


class CheckedData(Protocol[T]):
    """Data that can be checked."""

    @property
    def streaming(self) -> bool:
        """Return whether the data are a stream, which is not read twice."""

    def describe(self) -> list[str]:
        """Lines of the summary before a run."""

    def measures(self) -> Mapping[str, Measures[T]]:
        """Measurements to be made, by the name of the source; every source once."""


@dataclass(frozen=True)
class Report:
    """Findings about a data set.

    Attributes:
        lines: the summary.
        bad: "name: reason" of every sample that cannot be read.
        num_samples: all samples, the bad ones included.
        allowed: so many bad ones a run would tolerate.
    """

    lines: list[str]
    bad: list[str]
    num_samples: int
    allowed: float

    @property
    def too_many(self) -> bool:
        """Return whether a run would stop over the bad ones."""
        return len(self.bad) > self.allowed


def check_data(data: CheckedData[T], max_bad_fraction: float) -> Report:
    """Read every sample of a data set.

    Args:
        data: made with a tolerance for bad samples of 1, so that all of them are found.
        max_bad_fraction: which a run would use.

    Raises:
        ValueError: it is a stream, which is not read twice.
    """
    if data.streaming:
        raise ValueError("streaming=true: a stream is read once, by the run itself; set streaming=false")
    lines, bad, total = data.describe(), [], 0
    for name, measures in data.measures().items():
        counts = _read(measures)
        lines += [visible(f"{name:<9} {line}") for line in counts.lines(measures)]
        total += measures.total
        bad += [*measures.bad, *counts.bad]
    bad = list(dict.fromkeys(bad))
    return Report(lines, bad, total, tolerated(max_bad_fraction, total))


@dataclass
class _Counts:
    """Counts of the samples of one source, of any modality.

    Attributes:
        bad: "name: reason" of every sample that cannot be read.
        endings: numbers of good samples by the ending of their name.
        classes: numbers of good samples by class.
    """

    bad: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)

    def lines(self, measures: Measures[T]) -> Iterator[str]:
        """Return lines of what was counted and measured."""
        if not self.endings:
            yield "no sample can be read"
            return
        if set(self.endings) != {_NO_ENDING}:
            yield f"formats: {in_words(self.endings)}"
        yield from measures.sizes()
        if self.classes:
            listed = ", ".join(f"{name} {count:,}" for name, count in self.classes.most_common(_NAMED_CLASSES))
            yield f"classes: {listed}{', ...' if len(self.classes) > _NAMED_CLASSES else ''}"
        yield from measures.suggestions()


def _read(measures: Measures[T]) -> _Counts:
    """Read and measure every sample."""
    counts, source = _Counts(), measures.source
    for index in range(len(source)):
        name = source.name(index)
        try:
            measures.add(index, source.load(index))
        except BadSample as error:
            counts.bad.append(f"{name}: {error}")
            continue
        counts.endings[os.path.splitext(name)[1].lower() or _NO_ENDING] += 1
        counts.classes.update(_class_of(source.label(index), source.class_names))
    return counts


def _class_of(label: Label | None, names: tuple[str, ...] | None) -> list[str]:
    """The name of the label, if it is a class of known name."""
    return [names[label]] if names and isinstance(label, int) and 0 <= label < len(names) else []
