"""Sizes, channels, mean and standard deviation of images, for ``d2v check``."""

from __future__ import annotations

from collections import Counter

import numpy as np
from PIL import Image

from d2v.data.contents import in_words
from d2v.data.images.decoding import to_channels
from d2v.data.images.levels import evenly_spaced
from d2v.data.images.views import Normalize
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
        self._means: list[np.ndarray] = []  # (C,) of pixels in [0, 1]
        self._squares: list[np.ndarray] = []  # (C,) means of their squares

    def add(self, index: int, sample: Image.Image) -> None:
        """Note size and mode, and of some images the pixels. Raises BadSample if it cannot be converted."""
        converted = to_channels(sample, self._in_chans)
        self._sizes.append(sample.size)
        self._modes[sample.mode] += 1
        if index in self._averaged:
            no_change = Normalize((0.0,) * self._in_chans, (1.0,) * self._in_chans)
            pixels: np.ndarray = no_change(converted).double().numpy()  # (C, H, W)
            self._means.append(pixels.mean((1, 2)))
            self._squares.append((pixels**2).mean((1, 2)))

    def sizes(self) -> list[str]:
        """Channels, widths and heights."""
        widths, heights = zip(*self._sizes, strict=True)
        return [f"channels: {in_words(self._modes)}", f"width {spread(widths)}, height {spread(heights)} pixels"]

    def suggestions(self) -> list[str]:
        """``mean`` and ``std`` of the pixels."""
        if not self._means:
            return []
        mean = np.mean(self._means, axis=0)
        std = np.sqrt(np.maximum(np.mean(self._squares, axis=0) - mean**2, 0))
        return [f"suggested: mean={_listed(mean)} std={_listed(std)} (of {len(self._means):,} images)"]


def _listed(values: np.ndarray) -> str:
    return "[" + ",".join(f"{value:.4f}" for value in values) + "]"
