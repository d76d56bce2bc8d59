"""Conversion of images of more than 8 bits to 8 bits, with one range of values for a whole data set.

Images of 10, 12 or 14 bits are stored in 16-bit files that do not state their depth. A separate range for each image
would change the brightness between images, so one range is inferred from a sample of files, or set by
``bit_depth``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

NUM_SAMPLED = 64  # files
_DEPTHS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Levels:
    """Range of pixel values that is mapped to 0 to 255.

    Attributes:
        low: this value and all below it become 0.
        high: this value and all above it become 255.
        sampled: whether the range is from a sample of images. If not, every image of 32-bit integers or floats, which
            have no usual range, has its own.
    """

    low: float
    high: float
    sampled: bool = True

    @classmethod
    def of_bits(cls, bit_depth: int) -> Levels:
        """All unsigned integers of so many bits."""
        return cls(0, 2**bit_depth - 1)

    @property
    def bits(self) -> int | None:
        """Bits of the integers in the range, if that is what it is."""
        bits = int(self.high + 1).bit_length() - 1
        return bits if self.low == 0 and self.high + 1 == 2**bits else None


UNSAMPLED = Levels(0, 65535, sampled=False)


def is_deep(image: Image.Image) -> bool:
    """Return whether a grey image has more than 8 bits a pixel."""
    return image.mode.startswith(("I", "F"))


def levels_of(low: float, high: float) -> Levels:
    """Return the range of images with values between two: floats from 0 to 1, the fewest bits, or just these."""
    if low < 0 or high > 65535:
        return Levels(low, high)
    if high <= 1:
        return Levels(0, 1)
    return Levels.of_bits(next(bits for bits in _DEPTHS if high < 2**bits))


def to_8_bits(pixels: np.ndarray, levels: Levels) -> np.ndarray:
    """Values from ``low`` to ``high`` as 0 to 255, rounded; uint8."""
    if pixels.dtype == np.uint16:
        table: np.ndarray = to_8_bits(np.arange(65536, dtype=np.float32), levels)[pixels]
        return table
    scaled = np.nan_to_num(pixels.astype(np.float64), nan=levels.low, posinf=levels.high, neginf=levels.low)
    scaled = (scaled - levels.low) * (255 / max(levels.high - levels.low, 1e-12))
    rounded: np.ndarray = scaled.round().clip(0, 255).astype(np.uint8)
    return rounded


def grey_to_8_bits(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """A deep grey image (:func:`is_deep`) as one of mode "L".

    Args:
        image: of mode "I", "F", "I;16" or the like.
        levels: of the data set; None for a single image, with the range of its own values.
    """
    pixels = np.asarray(image)
    if levels is None or not (levels.sampled or image.mode.startswith("I;16")):
        levels = levels_of(*_extremes(pixels))
    return Image.fromarray(to_8_bits(pixels, levels))


def evenly_spaced(count: int, most: int = NUM_SAMPLED) -> Iterator[int]:
    """At most so many numbers below ``count``."""
    chosen = min(count, most)
    return (i * count // chosen for i in range(chosen))


def choose_levels(deep: Iterable[np.ndarray | None], bit_depth: int | None) -> tuple[Levels, tuple[str, ...]]:
    """The range of a data set, and a note where it was inferred.

    Args:
        deep: pixels of a sample of the images; None for those of 8 bits.
        bit_depth: bits that are used, from 8 to 16; None to infer them from the highest value of the sample.
    """
    if bit_depth is not None:
        return Levels.of_bits(bit_depth), ()
    extremes = [_extremes(pixels) for pixels in deep if pixels is not None]
    if not extremes:
        return UNSAMPLED, ()
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    levels = levels_of(low, high)
    meaning = f"values {levels.low:g} to {levels.high:g}" if levels.bits is None else f"{levels.bits} bits"
    change = "set bit_depth if that is wrong"
    return levels, (
        f"16- or 32-bit images, values {low:g} to {high:g} in {len(extremes)} of them: {meaning}; {change}",
    )


def _extremes(pixels: np.ndarray) -> tuple[float, float]:
    finite: Sequence[float] | np.ndarray = pixels[np.isfinite(pixels)]
    return (float(np.min(finite)), float(np.max(finite))) if len(finite) else (0.0, 0.0)
