"""Whole data sets read as training reads them: sizes, formats, classes, mean, deviation, all bad samples at once.

``d2v check`` prints what is found here, before a run finds it out sample by sample.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v.data.bad_samples import BadSample, tolerated
from d2v.data.contents import first_of, in_words, visible
from d2v.data.images.decoding import to_channels
from d2v.data.images.levels import evenly_spaced
from d2v.data.images.views import Normalize

_MEASURED = 1000  # images whose pixels are averaged, evenly spaced
_NAMED_CLASSES = 20
_LENGTH_ERROR = 0.01  # share that a clip may be longer or shorter than was listed


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


def check_data(data: Any, max_bad_fraction: float) -> Report:
    """Read every sample of a data set.

    Args:
        data: images, speech or text, made with a tolerance for bad samples of 1, so that all of them are found.
        max_bad_fraction: which a run would use.

    Raises:
        ValueError: it is a stream, which is not read twice.
    """
    if getattr(data, "streaming", False):
        raise ValueError("data.streaming=true: a stream is read once, by the run itself; set data.streaming=false")
    lines, bad, total = list(data.describe()), [], 0
    for name, source in _sources(data):
        of_source = _Statistics(data, source)
        of_source.read()
        lines += [visible(f"{name:<9} {line}") for line in of_source.lines()]
        total += of_source.total
        bad += of_source.bad
    bad = list(dict.fromkeys(bad))
    return Report(lines, bad, total, tolerated(max_bad_fraction, total))


def _sources(data: Any) -> Iterator[tuple[str, Any]]:
    seen: list[Any] = []
    for name in ("train", "probe_train", "val"):
        source = getattr(data, name, None)
        if source is not None and not any(source is other for other in seen):
            seen.append(source)
            yield name, source


class _Statistics:
    """Statistics of one source, gathered sample by sample."""

    def __init__(self, data: Any, source: Any) -> None:
        self.data, self.source = data, source
        known = tuple(getattr(source, "bad", ()))  # of recordings and documents, found when they were listed
        self.bad = [str(entry) for entry in known]
        # Of text a run counts documents, which are more or fewer than blocks.
        self.total = getattr(source, "num_documents", len(source) + (len(known) if hasattr(source, "too_short") else 0))
        self.other_lengths: list[str] = []
        self.endings: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.sizes: list[tuple[float, ...]] = []
        self.moments: list[tuple[np.ndarray, np.ndarray]] = []

    def read(self) -> None:
        measured = set(evenly_spaced(len(self.source), _MEASURED))
        for index in range(len(self.source)):
            name = self.source.name(index)
            try:
                sample = self.source.load(index)
            except BadSample as error:
                self.bad.append(f"{name}: {error}")
                continue
            try:
                self._note_size(sample, index in measured)
            except BadSample as error:
                self.bad.append(f"{name}: {error}")
                continue
            if hasattr(self.data, "sample_rate") and abs(
                len(sample) - self.source.lengths[index]
            ) > _LENGTH_ERROR * len(sample):
                self.other_lengths.append(name)
            self.endings[os.path.splitext(name)[1].lower() or "no ending"] += 1
            self._note_class(self.source.label(index))

    def _note_class(self, label: Any) -> None:
        names = self.source.class_names
        if names and isinstance(label, int) and 0 <= label < len(names):
            self.classes[names[label]] += 1

    def _note_size(self, sample: Any, measured: bool) -> None:
        if hasattr(sample, "mode"):  # a picture
            converted = to_channels(sample, len(self.data.mean))
            self.sizes.append((sample.width, sample.height))
            self.modes[sample.mode] += 1
            if measured:
                pixels = _pixels(converted)
                self.moments.append((pixels.mean((1, 2)), (pixels**2).mean((1, 2))))
        elif hasattr(self.data, "sample_rate"):
            self.sizes.append((len(sample) / self.data.sample_rate,))
        else:
            self.sizes.append((len(sample),))

    def lines(self) -> Iterator[str]:
        """Words for what was found."""
        if not self.sizes:
            yield "no sample can be read"
            return
        if set(self.endings) != {"no ending"}:
            yield f"formats: {in_words(self.endings)}"
        columns = list(zip(*self.sizes, strict=True))
        if self.modes:
            yield f"channels: {in_words(self.modes)}"
            yield f"width {_spread(columns[0])}, height {_spread(columns[1])} pixels"
        elif hasattr(self.data, "sample_rate"):
            rates = self.source.rates() if hasattr(self.source, "rates") else None
            hours = sum(columns[0]) / 3600
            yield f"durations {_spread(columns[0])} s, {hours:.2f} h in all, read at {self.data.sample_rate:,} Hz"
            if self.other_lengths:
                yield f"not as long as listed: {len(self.other_lengths):,} clips ({first_of(self.other_lengths, 3)})"
            if rates:
                yield f"rates of the files: {in_words({f'at {rate:,} Hz': count for rate, count in rates.items()})}"
        else:
            yield f"lengths {_spread(columns[0])} {'characters' if hasattr(self.source, 'texts') else 'tokens'}"
        if self.classes:
            listed = ", ".join(f"{name} {count:,}" for name, count in self.classes.most_common(_NAMED_CLASSES))
            yield f"classes: {listed}{', ...' if len(self.classes) > _NAMED_CLASSES else ''}"
        if self.moments:
            mean, std = _mean_and_std(self.moments)
            yield f"suggested: data.mean={mean} data.std={std} (of {len(self.moments):,} images)"


def _pixels(image: Any) -> np.ndarray:
    """(C, H, W) in [0, 1]."""
    channels = len(image.getbands())
    pixels: np.ndarray = Normalize((0.0,) * channels, (1.0,) * channels)(image).double().numpy()
    return pixels


def _mean_and_std(moments: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[str, str]:
    mean = np.mean([first for first, _ in moments], axis=0)
    std = np.sqrt(np.maximum(np.mean([second for _, second in moments], axis=0) - mean**2, 0))
    return tuple("[" + ",".join(f"{value:.4f}" for value in values) + "]" for values in (mean, std))  # type: ignore[return-value]


def _spread(values: Sequence[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:g} to {high:g} (median {middle:g})" if low < high else f"{low:g}"
