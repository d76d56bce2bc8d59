"""Views of PIL images as normalised tensors: random ones for pretraining, a fixed one for evaluation.

The crop is the usual random resized crop (arXiv:1409.4842, as in torchvision's ``RandomResizedCrop``), drawn from a
generator passed by the caller: no global random state is read or changed. Crop and resize are one call of PIL's
resampler, which therefore reads pixels beyond the crop's border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# The usual bounds of a crop's width / height; the original paper's.
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10

Box = tuple[float, float, float, float]


def random_crop_box(width: int, height: int, scale: tuple[float, float], uniform: list[float]) -> Box:
    """A random crop: its share of the area uniform in ``scale``, its aspect ratio log-uniform in [3/4, 4/3].

    Ten tries; if none fits into the image, the largest central crop of an allowed aspect ratio.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        scale: lowest and highest share of the image's area, in (0, 1].
        uniform: 40 numbers in [0, 1), four for each try.

    Returns:
        (left, upper, right, lower) in pixels, integral.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for i in range(0, 4 * _TRIES, 4):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * uniform[i])
        ratio = math.exp(low + (high - low) * uniform[i + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(uniform[i + 2] * (width - w + 1)), int(uniform[i + 3] * (height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def center_crop_box(width: int, height: int, size: int, crop_pct: float) -> Box:
    """The part of an image that is left after resizing its shorter side to ``size / crop_pct`` and a center crop.

    As a box in the original's pixels, it costs one resize to the final size, even for very long images.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        size: side of the center crop, pixels.
        crop_pct: ``size`` as a share of the resized shorter side, in (0, 1].

    Returns:
        (left, upper, right, lower) in pixels of the original, fractional.
    """
    shorter = max(size, round(size / crop_pct))
    if width <= height:
        new_width, new_height = shorter, int(shorter * height / width)
    else:
        new_width, new_height = int(shorter * width / height), shorter
    left, upper = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, upper * y, min(width, (left + size) * x), min(height, (upper + size) * y)


@dataclass(frozen=True)
class Normalize:
    """Bytes to float32, (value / 255 - mean) / std.

    Attributes:
        mean: of every channel, pixel values in [0, 1].
        std: of every channel, in the same unit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @cached_property
    def _scale(self) -> np.ndarray:
        return (1 / (255 * np.array(self.std))).astype(np.float32).reshape(-1, 1, 1)

    @cached_property
    def _shift(self) -> np.ndarray:
        return (-np.array(self.mean) / np.array(self.std)).astype(np.float32).reshape(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return (C, H, W) float32 of an "L" or "RGB" image."""
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        normalized = np.multiply(pixels, self._scale, dtype=np.float32, order="C")
        normalized += self._shift
        return torch.from_numpy(normalized)


@dataclass(frozen=True)
class PretrainTransform:
    """Random resized crop (bicubic, antialiased), horizontal flip, normalisation.

    Attributes:
        img_size: side of the result, pixels.
        crop_scale: lowest and highest share of the area that a crop covers.
        hflip: probability of a horizontal flip.
        normalize: applied last.
    """

    img_size: int
    crop_scale: tuple[float, float]
    hflip: float
    normalize: Normalize

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Return (C, img_size, img_size) float32; the same image and generator state give the same view."""
        *crop, flip = rng.random(4 * _TRIES + 1).tolist()
        box = random_crop_box(*image.size, self.crop_scale, crop)
        image = image.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC, box=box)
        if flip < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalize(image)


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to ``img_size / crop_pct`` (bicubic, antialiased), center crop, normalisation.

    Attributes:
        img_size: side of the result, pixels.
        crop_pct: ``img_size`` as a share of the resized shorter side, in (0, 1].
        normalize: applied last.
    """

    img_size: int
    crop_pct: float
    normalize: Normalize

    def __call__(self, image: Image.Image) -> Tensor:
        """Return (C, img_size, img_size) float32."""
        box = center_crop_box(*image.size, self.img_size, self.crop_pct)
        return self.normalize(image.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC, box=box))


@dataclass(frozen=True)
class WholeTransform:
    """Resize the whole image to a square (bicubic, antialiased), whatever its aspect ratio, normalisation.

    Attributes:
        img_size: side of the result, pixels.
        normalize: applied last.
    """

    img_size: int
    normalize: Normalize

    def __call__(self, image: Image.Image) -> Tensor:
        """Return (C, img_size, img_size) float32."""
        return self.normalize(image.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC))
