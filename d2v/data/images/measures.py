"""Sizes, channels, mean and standard deviation of images, for ``d2v check``."""

from __future__ import annotations

from collections import Counter

from PIL import Image

from d2v.data.contents import in_words
from d2v.data.images.decoding import to_channels
from d2v.data.images.inputs import PixelStatistics, is_grey, listed
from d2v.data.images.levels import evenly_spaced
from d2v.data.measures import Measures, spread
from d2v.data.source import Source

_NUM_AVERAGED = 1000  # images, evenly spaced


class ImageMeasures(Measures[Image.Image]):
    """Measurements of images.

    Args:
        source: the images.
        in_chans: channels of the inputs: 1 (grey) or 3 (RGB).
    """

    def __init__(self, source: Source[Image.Image], in_chans: int) -> None:
        super().__init__(source)
        self._in_chans = in_chans
        self._averaged = set(evenly_spaced(len(source), _NUM_AVERAGED))
        self._modes: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._statistics = {channels: PixelStatistics(channels) for channels in {1, in_chans}}
        self._all_grey = True

    def add(self, index: int, sample: Image.Image) -> None:
        """Note size and mode, and of some images the pixels. Raises BadSample if it cannot be converted."""
        to_channels(sample, self._in_chans)
        self._sizes.append(sample.size)
        self._modes[sample.mode] += 1
        self._all_grey = self._all_grey and is_grey(sample)
        if index in self._averaged:
            for statistics in self._statistics.values():
                statistics.add(sample)

    def sizes(self) -> list[str]:
        """Channels, widths and heights."""
        widths, heights = zip(*self._sizes, strict=True)
        return [f"channels: {in_words(self._modes)}", f"width {spread(widths)}, height {spread(heights)} pixels"]

    def suggestions(self) -> list[str]:
        """``mean`` and ``std`` of the pixels; ``in_chans=1`` where no image has a colour."""
        statistics = self._statistics[1 if self._all_grey else self._in_chans]
        if not len(statistics):
            return []
        channels, why = ("in_chans=1 ", ", all grey") if self._all_grey else ("", "")
        words = f"{channels}mean={listed(statistics.mean)} std={listed(statistics.std)}"
        return [f"suggested: {words} (of {len(statistics):,} images{why})"]
