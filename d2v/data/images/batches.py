"""Views of images and how they are collated: the image's part of what runs in the data workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2v.data.images.sources import to_channels
from d2v.data.images.views import EvalTransform, PretrainTransform
from d2v.data.source import Sample, labels_of, skipped_in
from d2v.types import Batch

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
        """(C, H, W) float32. Raises BadSample for modes that cannot be converted."""
        return self.transform(to_channels(image, self.in_chans), rng)


@dataclass(frozen=True)
class EvalView:
    """The evaluation view.

    Attributes:
        in_chans: 1 or 3.
        transform: makes the view.
    """

    in_chans: int
    transform: EvalTransform

    def __call__(self, image: Image.Image) -> Tensor:
        """(C, H, W) float32. Raises BadSample for modes that cannot be converted."""
        return self.transform(to_channels(image, self.in_chans))


@dataclass(frozen=True)
class EvalCollate:
    """Evaluation views to a batch, without the images that could not be read.

    Attributes:
        image_shape: (C, H, W), for batches in which nothing could be read.
    """

    image_shape: tuple[int, int, int]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of up to ``len(samples)`` views, in order; labels None if any image lacks one."""
        images = [sample.inputs for sample in samples if sample.inputs is not None]
        good = [sample for sample in samples if sample.inputs is not None]
        return Batch(
            modality=MODALITY,
            inputs=torch.stack(images) if images else torch.empty(0, *self.image_shape),
            sample_ids=torch.tensor([sample.key.index for sample in good], dtype=torch.int64),
            labels=labels_of(good),
            skipped=skipped_in(samples),
        )
