"""``ImageData``: images and their batches, the interface of image data to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import torch
from PIL import Image
from torch import Tensor

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.contents import distinct
from d2v.data.datasets import EqualSamples, EvalCollate, EvalSamples, PretrainSamples
from d2v.data.images.augment import AugmentedView, ImageAugment, MixCollate
from d2v.data.images.batches import MODALITY, EvalView, PretrainView
from d2v.data.images.measures import ImageMeasures
from d2v.data.images.views import EvalTransform, Normalize, PretrainTransform, WholeTransform
from d2v.data.labelled import FinetuneSet, part
from d2v.data.samplers import BatchPlan
from d2v.data.shards import ShardedBatches, stream_batches
from d2v.data.source import Source
from d2v.data.streams import Stream, StreamBatches
from d2v.objective.masking import MaskGenerator
from d2v.values import Channels, CropScale, FiniteFloat, Fraction, ImageSize, PositiveFloat, PositiveFraction

_RAW_SIZE = 32  # pixels: side of the images of the baseline


class ImageOptions(TypedDict, total=False):
    """Options of every factory of images, with their ranges; meaning and defaults are those of :class:`ImageData`.

    A factory chooses those that may be None (:mod:`d2v.data.images.inputs`).
    """

    img_size: ImageSize
    patch_size: ImageSize
    in_chans: Channels | None
    mean: Sequence[FiniteFloat] | None
    std: Sequence[PositiveFloat] | None
    crop_scale: CropScale
    crop_pct: PositiveFraction | None
    hflip: Fraction
    max_bad_fraction: Fraction


@dataclass(frozen=True, kw_only=True)
class ImageData(EqualSamples):
    """Images and their batches for pretraining, evaluation and fine-tuning.

    Attributes:
        train: images to pretrain on; a stream has no labels, no length and no access by number.
        probe_train: labelled images to train probes on, or None.
        val: labelled images to evaluate probes on, or None.
        img_size: side of the inputs, pixels.
        patch_size: side of a token, pixels.
        in_chans: 1 (grey) or 3 (RGB); other images are converted.
        mean: of every channel, pixel values in [0, 1].
        std: of every channel, in the same unit.
        crop_scale: lowest and highest share of an image's area that a training crop covers.
        crop_pct: share of the shorter side that the evaluation's center crop keeps
            (:func:`d2v.data.images.inputs.default_crop_pct`).
        hflip: probability of a horizontal flip in training.
        max_bad_fraction: highest tolerated share of images that cannot be read.
        shuffle_buffer: rows that every worker holds to shuffle a stream; unused otherwise.

    Raises:
        ValueError: values do not fit each other: ``img_size`` is no multiple of ``patch_size``, or ``mean`` or ``std``
            has not one number a channel.
    """

    modality: ClassVar[str] = MODALITY
    input_keys: ClassVar[tuple[str, ...]] = ("img_size", "patch_size", "in_chans", "mean", "std", "crop_pct")
    found_keys: ClassVar[tuple[str, ...]] = ("in_chans", "mean", "std", "crop_pct")
    input_name: ClassVar[str] = "raw pixels"
    eval_batch_size: ClassVar[int] = 256

    train: Source[Image.Image] | Stream
    probe_train: Source[Image.Image] | None = None
    val: Source[Image.Image] | None = None
    img_size: int = 224
    patch_size: int = 16
    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]
    crop_scale: Sequence[float] = (0.2, 1.0)
    crop_pct: float
    hflip: float = 0.5
    max_bad_fraction: float = 0.01
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        for name in ("mean", "std", "crop_scale"):  # configuration files give lists of their own kind
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.img_size % self.patch_size:
            multiple = max(1, round(self.img_size / self.patch_size)) * self.patch_size
            raise ValueError(
                f"img_size={self.img_size} is no multiple of patch_size={self.patch_size}; set "
                f"img_size={multiple} or another patch_size"
            )
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans={self.in_chans}: choose 1 (grey) or 3 (RGB)")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_chans:
                raise ValueError(
                    f"{name}={list(getattr(self, name))}: give one number a channel, in_chans={self.in_chans}"
                )
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale={list(self.crop_scale)}: give [low, high] with low <= high")

    @property
    def streaming(self) -> bool:
        """Return whether the training images are a stream."""
        return not hasattr(self.train, "__len__")

    @property
    def size(self) -> float | None:
        """Images to pretrain on; None for a stream."""
        return self.num_samples

    @property
    def num_samples(self) -> int | None:
        """Images to pretrain on; None for a stream."""
        return None if self.streaming else len(self._train_images())

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of one image."""
        side = self.img_size // self.patch_size
        return side, side

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are none."""
        labelled = self.probe_train or self.val
        return None if labelled is None else labelled.class_names

    def pretrain_dataset(self, seed: int) -> PretrainSamples[Image.Image]:
        """Random views by SampleKey, for a ``DataLoader`` with a ``StreamSampler`` and ``pretrain_collate``.

        Raises:
            ValueError: the data is a stream.
        """
        return PretrainSamples(self._train_images(), self._pretrain_view(), seed)

    def pretrain_stream(self, mask: MaskGenerator | None, seed: int, plan: BatchPlan) -> StreamBatches | ShardedBatches:
        """Batches of random views with masks, for a ``DataLoader`` with ``batch_size=None``.

        Raises:
            ValueError: the data is not a stream, or no such masks exist on the token grid.
        """
        if not self.streaming:
            raise ValueError("streaming=false: use pretrain_dataset")
        stream: Stream = self.train  # type: ignore[assignment]  # what ``streaming`` has just told
        collate = self.pretrain_collate(mask, seed)
        return stream_batches(stream, self._pretrain_view(), collate, seed, plan, self.shuffle_buffer)

    def eval_dataset(self, split: str) -> EvalSamples[Image.Image]:
        """The evaluation view of every image, for a ``DataLoader`` with ``eval_collate``.

        Args:
            split: "train" (``probe_train``, or all training images if none has a label) or "val".

        Raises:
            ValueError: there is no such split.
        """
        return EvalSamples(self._eval_source(split), self._eval_view())

    def _eval_source(self, split: str) -> Source[Image.Image]:
        unlabelled = None if self.streaming else self._train_images()
        source = {"train": self.probe_train or unlabelled, "val": self.val}.get(split)
        if source is None:
            raise ValueError(
                f"split {split!r}: this data has no such labelled images; set val_root or val_split, and for "
                '"train" give the training images labels (class directories, label_column, no streaming)'
            )
        return source

    @property
    def eval_collate(self) -> EvalCollate:
        """Evaluation views to a batch without masks."""
        return EvalCollate(MODALITY, (self.in_chans, self.img_size, self.img_size))

    def finetune(
        self, augment: ImageAugment, label_fraction: PositiveFraction = 1.0, seed: int = 0
    ) -> FinetuneSet[Image.Image]:
        """The labelled images, to train on and to score.

        Args:
            augment: how images are varied in training.
            label_fraction: train on this share of every class only.
            seed: decides which, and how batches are mixed.

        Raises:
            ValueError: training or validation images have no labels, or the fraction is out of range.
        """
        if self.probe_train is None or self.val is None or self.probe_train.class_names is None:
            raise ValueError(
                "fine-tuning needs labelled training and validation images: class directories in root=.../train and "
                "root=.../val, val_root, or label_column and val_split"
            )
        classes = self.probe_train.class_names
        image_shape = (self.in_chans, self.img_size, self.img_size)
        return FinetuneSet(
            train=part(self.probe_train, label_fraction, seed),
            evals={"val": self.val},
            labels=classes,
            train_view=AugmentedView(image_shape, self.mean, self.std, augment),
            eval_view=self._eval_view(),
            collate=self.eval_collate,
            train_collate=MixCollate(self.eval_collate, len(classes), augment, seed) if augment.mixes else None,
            eval_batch_size=self.eval_batch_size,
            max_bad_fraction=self.max_bad_fraction,
        )

    def raw(self, split: str) -> tuple[Tensor, Tensor]:
        """Pixels as features, the baseline that a representation has to beat.

        Args:
            split: "train" or "val".

        Returns:
            Features (N, C * S * S) float32, normalised, of whole images resized to S = 32 pixels or a smaller
            ``img_size``, whatever ``crop_pct`` is, and labels (N,) int64. Images that cannot be read or have no label
            are left out.

        Raises:
            ValueError: there is no such split.
        """
        size = min(_RAW_SIZE, self.img_size)
        view = EvalView(self.in_chans, WholeTransform(size, self._normalize()))
        images = EvalSamples(self._eval_source(split), view)
        samples = (images[i] for i in range(len(images)))
        pairs = [(sample.inputs.flatten(), sample.label) for sample in samples if sample.inputs is not None]
        labelled = [(pixels, label) for pixels, label in pairs if label is not None]
        if not labelled:
            return torch.empty(0, self.in_chans * size * size), torch.empty(0, dtype=torch.int64)
        return torch.stack([pixels for pixels, _ in labelled]), torch.tensor([label for _, label in labelled])

    def bad_sample_counter(self) -> BadSampleCounter:
        """A counter for ``Batch.skipped`` with this data's limit."""
        return BadSampleCounter(self.max_bad_fraction, self.num_samples)

    def measures(self) -> dict[str, ImageMeasures]:
        """Measurements to be made for ``d2v check``, by the name of the source. Raises ValueError for a stream."""
        sources = distinct({"train": self._train_images(), "probe_train": self.probe_train, "val": self.val})
        return {name: ImageMeasures(source, self.in_chans) for name, source in sources.items()}

    def _train_images(self) -> Source[Image.Image]:
        if self.streaming:
            raise ValueError("streaming=true: use pretrain_stream")
        return self.train  # type: ignore[return-value]  # what ``streaming`` has just told

    def _normalize(self) -> Normalize:
        return Normalize(tuple(self.mean), tuple(self.std))

    def _eval_view(self) -> EvalView:
        return EvalView(self.in_chans, EvalTransform(self.img_size, self.crop_pct, self._normalize()))

    def _pretrain_view(self) -> PretrainView:
        low, high = self.crop_scale
        return PretrainView(self.in_chans, PretrainTransform(self.img_size, (low, high), self.hflip, self._normalize()))
