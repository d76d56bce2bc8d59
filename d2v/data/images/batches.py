"""Views of images, made in the data workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from d2v.data.images.sources import to_channels
from d2v.data.images.views import EvalTransform, PretrainTransform, WholeTransform

MODALITY = "image"


@dataclass(frozen=True)
class PretrainView:
    """A random view.

    Attributes:
        in_chans: 1 or 3.
        transform: makes the view.
    """

    in_chans: int
    transform: PretrainTransform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Return (C, H, W) float32. Raises BadSample for modes that cannot be converted."""
        return self.transform(to_channels(image, self.in_chans), rng)


@dataclass(frozen=True)
class EvalView:
    """The evaluation view.

    Attributes:
        in_chans: 1 or 3.
        transform: makes the view.
    """

    in_chans: int
    transform: EvalTransform | WholeTransform

    def __call__(self, image: Image.Image) -> Tensor:
        """Return (C, H, W) float32. Raises BadSample for modes that cannot be converted."""
        return self.transform(to_channels(image, self.in_chans))
