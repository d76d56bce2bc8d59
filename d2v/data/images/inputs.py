"""Form of image inputs that a user leaves open: channels, mean, standard deviation, evaluation crop.

The table of rules is in docs/data.md. What is found in the images is noted in the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from d2v.data.bad_samples import BadSample
from d2v.data.images.decoding import to_channels
from d2v.data.images.levels import evenly_spaced, is_deep
from d2v.data.images.views import Normalize
from d2v.data.source import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SMALL = 128  # pixels: smaller images seldom have a border around what they show
_CROP_PCT = 0.875  # timm's, and the released recipes'
_NUM_LOOKED_AT = 256  # images


def default_crop_pct(img_size: int) -> float:
    """Return ``crop_pct`` for inputs of this side, pixels: 1 below 128, .875 from there."""
    return 1.0 if img_size < _SMALL else _CROP_PCT


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has no colour: one channel, or equal ones. Raises BadSample if it cannot be converted."""
    if image.mode in ("1", "L", "LA", "La") or is_deep(image):
        return True
    pixels = np.asarray(to_channels(image, 3))
    return bool((pixels == pixels[..., :1]).all())


class PixelStatistics:
    """Mean and standard deviation of every channel over images, of which each counts equally.

    Args:
        in_chans: 1 (grey) or 3 (RGB).
    """

    def __init__(self, in_chans: int) -> None:
        self._in_chans = in_chans
        self._means: list[np.ndarray] = []  # (C,) of pixels in [0, 1]
        self._squares: list[np.ndarray] = []  # (C,) means of their squares

    def add(self, image: Image.Image) -> None:
        """Add an image of any mode. Raises BadSample if it cannot be converted."""
        no_change = Normalize((0.0,) * self._in_chans, (1.0,) * self._in_chans)
        pixels: np.ndarray = no_change(to_channels(image, self._in_chans)).double().numpy()  # (C, H, W)
        self._means.append(pixels.mean((1, 2)))
        self._squares.append((pixels**2).mean((1, 2)))

    def __len__(self) -> int:
        return len(self._means)

    @property
    def mean(self) -> list[float]:
        """Mean of every channel, rounded to four places; of at least one image."""
        return [round(float(value), 4) for value in np.mean(self._means, axis=0)]

    @property
    def std(self) -> list[float]:
        """Standard deviation of every channel, rounded to four places; of at least one image."""
        variance = np.mean(self._squares, axis=0) - np.mean(self._means, axis=0) ** 2
        return [round(float(value), 4) for value in np.sqrt(np.maximum(variance, 0))]


def listed(values: Sequence[float]) -> str:
    """Format numbers as a command line takes them: "[0.1307,0.2]"."""
    return "[" + ",".join(f"{value:.4f}" for value in values) + "]"


@dataclass(frozen=True)
class ChosenChannels:
    """Channels of the inputs.

    Attributes:
        in_chans: 1 (grey) or 3 (RGB).
        mean: of every channel, pixel values in [0, 1].
        std: of every channel, in the same unit.
        notes: what was found in the images, for the summary.
    """

    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]
    notes: tuple[str, ...] = ()


def choose_channels(
    train: Any, in_chans: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ChosenChannels:
    """Return the channels of a data set, with what is None chosen.

    Without ``in_chans``, a data set is grey if all of 256 images are, evenly spaced. Mean and standard deviation are
    ImageNet's for RGB, and those of these images for grey.

    Args:
        train: the images, or a stream, which is not looked at and counts as RGB.
        in_chans: 1 or 3; None to look.
        mean: of every channel; None to choose.
        std: of every channel; None to choose.

    Raises:
        ValueError: mean or standard deviation of a grey stream are open.
    """
    streamed = not hasattr(train, "__len__")
    looked = in_chans is None
    if in_chans is None:
        stated = mean if mean is not None else std
        if stated is not None and len(stated) in (1, 3):
            in_chans = len(stated)
        else:
            in_chans = 1 if not streamed and _all_grey(train) else 3
    if in_chans != 1:
        return ChosenChannels(in_chans, IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std)
    if mean is not None and std is not None:
        return ChosenChannels(in_chans, mean, std)
    if streamed:
        raise ValueError("in_chans=1: the images of a stream are not measured; give mean=[...] and std=[...], too")
    found = PixelStatistics(1)
    for image in _sample(train):
        found.add(image)
    if not len(found):  # the run stops over them
        return ChosenChannels(in_chans, mean or [0.5], std or [0.25])
    mean, std = mean or found.mean, std or [max(value, 1e-4) for value in found.std]
    measured = f"mean={listed(mean)} std={listed(std)}, of {len(found):,} images"
    return ChosenChannels(in_chans, mean, std, (f"grey images: in_chans=1 {measured}" if looked else measured,))


def _all_grey(source: Source[Image.Image]) -> bool:
    """Return whether there are images that can be read, and all that are looked at are grey."""
    images = _sample(source)
    first = next(images, None)
    return first is not None and is_grey(first) and all(map(is_grey, images))


def _sample(source: Source[Image.Image]) -> Iterator[Image.Image]:
    """Return images that can be read and converted, evenly spaced."""
    for index in evenly_spaced(len(source), _NUM_LOOKED_AT):
        try:
            image = source.load(index)
            to_channels(image, 1)
        except BadSample:
            continue
        yield image
