"""Augmentation for fine-tuning on images, by timm: RandAugment, random erasing, mixup and cutmix.

timm draws from the global generators of Python, NumPy and torch; here these are seeded for every sample and put back
afterwards, so that a sample's view depends on seed, epoch and sample alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor

from d2v.data.images.sources import to_channels
from d2v.data.keys import RandomStream, sample_rng
from d2v.data.source import Sample
from d2v.types import Batch
from d2v.values import CropScale, Fraction, NonNegativeFloat, Rate, buildable


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators from ``rng`` within the block, and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # timm draws from it
    seed = int(rng.integers(2**31))
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would change a GPU's, too, and is slow
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@buildable
@dataclass(frozen=True, kw_only=True)
class ImageAugment:
    """Augmentation of images in fine-tuning; the published recipe's values are the defaults.

    Attributes:
        crop_scale: lowest and highest share of the area that a crop covers.
        hflip: probability of a horizontal flip.
        auto_augment: timm's name of a policy; None for none. The default is RandAugment of magnitude 9, as published,
            but never above 9: at 10 timm would keep 0 bits of a colour, which Pillow refuses.
        color_jitter: strength, where there is no policy; None for none.
        erase_prob: probability of erasing a rectangle.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        mix_prob: probability of mixing a batch at all.
        switch_prob: of cutmix instead of mixup, where both are on.
        label_smoothing: of mixed labels.

    Raises:
        ValueError: the lowest share of a crop is above its highest, or timm does not know the policy.
    """

    crop_scale: CropScale = (0.08, 1.0)
    hflip: Fraction = 0.5
    auto_augment: str | None = "rand-m9-mstd0.5-mmax9-inc1"
    color_jitter: NonNegativeFloat | None = None
    erase_prob: Fraction = 0.25
    mixup: NonNegativeFloat = 0.7
    cutmix: NonNegativeFloat = 1.0
    mix_prob: Fraction = 0.9
    switch_prob: Fraction = 0.5
    label_smoothing: Rate = 0.1

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if low > high:
            raise ValueError(f"crop_scale={list(self.crop_scale)}: give [low, high] with low <= high")
        if self.auto_augment is None:
            return
        try:
            create_transform((3, 32, 32), is_training=True, auto_augment=self.auto_augment)
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(
                f"auto_augment={self.auto_augment}: timm knows no such policy ({error or 'unknown'}); "
                "give one such as rand-m9-mstd0.5-inc1, augmix-m3-w3 or original, or null"
            ) from error

    @property
    def mixes(self) -> bool:
        """Return whether batches are mixed."""
        return max(self.mixup, self.cutmix) > 0 and self.mix_prob > 0


@dataclass(frozen=True)
class AugmentedView:
    """A random view for fine-tuning.

    Attributes:
        image_shape: (C, H, W) of the view.
        mean: of every channel.
        std: of every channel.
        augment: how images are varied.
    """

    image_shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    augment: ImageAugment

    @cached_property
    def _steps(self) -> tuple[Callable[[Any], Any], ...]:
        steps: tuple[Callable[[Any], Any], ...] = create_transform(
            self.image_shape,
            is_training=True,
            scale=(self.augment.crop_scale[0], self.augment.crop_scale[1]),
            hflip=self.augment.hflip,
            color_jitter=self.augment.color_jitter or 0.0,
            auto_augment=self.augment.auto_augment,
            interpolation="bicubic",
            re_prob=self.augment.erase_prob,
            re_mode="pixel",
            mean=tuple(self.mean),
            std=tuple(self.std),
            separate=True,
        )
        return steps

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Return (C, H, W) float32. Raises BadSample for modes that cannot be converted."""
        crop, vary, finish = self._steps
        with seeded(rng):
            colours = vary(crop(to_channels(image, 3)))  # the policies are made for colours
            view: Tensor = finish(to_channels(colours, self.image_shape[0]))
        return view


@dataclass(frozen=True)
class MixCollate:
    """Collate function that mixes a batch with itself in reverse, by mixup or cutmix; labels become shares of classes.

    Attributes:
        collate: makes the batch.
        num_classes: of the labels.
        augment: how to mix.
        seed: the run's data seed.
    """

    collate: Callable[[Sequence[Sample]], Batch]
    num_classes: int
    augment: ImageAugment
    seed: int

    @cached_property
    def _mixup(self) -> Mixup:
        return Mixup(
            mixup_alpha=self.augment.mixup,
            cutmix_alpha=self.augment.cutmix,
            prob=self.augment.mix_prob,
            switch_prob=self.augment.switch_prob,
            label_smoothing=self.augment.label_smoothing,
            num_classes=self.num_classes,
        )

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of an even number of samples."""
        batch = self.collate(samples)
        with seeded(sample_rng(self.seed, *samples[0].key, RandomStream.MASK)):
            inputs, labels = self._mixup(batch.inputs, batch.labels)
        return replace(batch, inputs=inputs, labels=labels.float())
