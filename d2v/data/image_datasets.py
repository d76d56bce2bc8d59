"""torch data sets and collate functions over image sources: what runs in the data workers.

Everything random in a sample depends on (seed, epoch, sample id) alone, so the batches of a run are the same whatever
the number of workers. A sample that cannot be read is replaced by the next one that can, as if that had been drawn, and
reported in ``Batch.skipped``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from d2v.data.bad_samples import BadSample
from d2v.data.image_sources import ImageSource, ImageStream, to_channels
from d2v.data.sampler import BatchPlan, RandomStream, SampleKey, sample_rng
from d2v.data.transforms import EvalTransform, PretrainTransform
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, TokenMask

MODALITY = "image"
_MAX_TRIES = 1000


class ImageSample(NamedTuple):
    """One row of a batch to be.

    Attributes:
        image: (C, H, W) float32; None if it could not be read (evaluation only).
        key: epoch and number of the sample that was read.
        label: its class, if it has one.
        skipped: samples that could not be read and that this one stands for, as "name: reason".
    """

    image: Tensor | None
    key: SampleKey
    label: int | None = None
    skipped: tuple[str, ...] = ()


def _first_good(
    candidates: Iterable[int], load: Callable[[int], Image.Image], name: Callable[[int], str]
) -> tuple[int, Image.Image, tuple[str, ...]]:
    """The first candidate that can be read, its image, and "name: reason" of those before it.

    Raises:
        BadSample: none of the candidates can be read.
    """
    skipped: list[str] = []
    for candidate in candidates:
        try:
            return candidate, load(candidate), tuple(skipped)
        except BadSample as error:
            skipped.append(f"{name(candidate)}: {error}")
    raise BadSample(f"{len(skipped)} samples in a row cannot be read, from {skipped[0]} to {skipped[-1]}")


class PretrainImages(Dataset[ImageSample]):
    """One random view of every image, by SampleKey.

    Args:
        source: the images.
        in_chans: 1 or 3.
        transform: makes the view.
        seed: the run's data seed.
    """

    def __init__(self, source: ImageSource, in_chans: int, transform: PretrainTransform, seed: int) -> None:
        self.source = source
        self.in_chans = in_chans
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> ImageSample:
        """The view of this sample, or of the next good one. Raises BadSample after 1,000 bad ones or a full turn."""
        epoch, index = key
        turn = ((index + i) % len(self) for i in range(min(len(self), _MAX_TRIES)))
        found, image, skipped = _first_good(turn, self._load, self.source.name)
        view = self.transform(image, sample_rng(self.seed, epoch, found, RandomStream.VIEW))
        return ImageSample(view, SampleKey(epoch, found), skipped=skipped)

    def _load(self, index: int) -> Image.Image:
        return to_channels(self.source.load(index), self.in_chans)


@dataclass(frozen=True)
class PretrainCollate:
    """Views to a batch, with every sample's masks.

    Attributes:
        mask_generator: draws the masks.
        patch_size: side of a token, pixels.
        seed: the run's data seed.
    """

    mask_generator: MaskGenerator
    patch_size: int
    seed: int

    def __call__(self, samples: Sequence[ImageSample]) -> Batch:
        """A batch of B views with B * num_masks masks, sample-major."""
        inputs = torch.stack([sample.image for sample in samples if sample.image is not None])
        grid = (inputs.shape[2] // self.patch_size, inputs.shape[3] // self.patch_size)
        rngs = [sample_rng(self.seed, *sample.key, RandomStream.MASK) for sample in samples]
        mask = torch.from_numpy(self.mask_generator(grid, rngs))
        return Batch(
            modality=MODALITY,
            inputs=inputs,
            sample_ids=torch.tensor([sample.key.index for sample in samples]),
            mask=TokenMask.from_bool(mask, self.mask_generator.num_masks),
            skipped=_skipped(samples),
        )


def _skipped(samples: Sequence[ImageSample]) -> tuple[str, ...]:
    return tuple(entry for sample in samples for entry in sample.skipped)


class _Row(NamedTuple):
    key: SampleKey
    record: Any


class StreamImages(IterableDataset[Batch]):
    """Complete batches from a stream of images; for ``DataLoader(batch_size=None)``.

    Worker w of W makes this rank's micro-batches w, w + W, ...: the order of batches does not depend on W. Every worker
    reads the whole stream, but decodes only what it needs: not what other workers and ranks make, nor what was consumed
    before a resume. A resumed run reads at most one epoch more than it needs, to count the rows.

    Args:
        stream: the images, in the order they are stored.
        in_chans: 1 or 3.
        transform: makes the views.
        collate: makes the batches; its seed is the data seed for order and views too.
        plan: which positions of the shuffled stream each batch covers.
        shuffle_buffer: rows, still encoded, held by every worker to shuffle them: a row is drawn at random and the next
            one read takes its place. 1 keeps the order.
    """

    def __init__(
        self,
        stream: ImageStream,
        in_chans: int,
        transform: PretrainTransform,
        collate: PretrainCollate,
        plan: BatchPlan,
        shuffle_buffer: int,
    ) -> None:
        self.stream = stream
        self.in_chans = in_chans
        self.transform = transform
        self.collate = collate
        self.plan = plan
        self.shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        batches = range(self.plan.start_batch + worker, self.plan.num_batches, num_workers)
        if not batches:
            return
        first = self.plan.positions(batches[0]).start
        window = _Window(self._rows(first), first)
        for batch in batches:
            positions = self.plan.positions(batch)
            window.forget_before(positions.start)
            yield self.collate([self._sample(window, position) for position in positions])

    def _sample(self, window: _Window, position: int) -> ImageSample:
        """The view at a position, or at the next one that can be read."""
        found, image, skipped = _first_good(
            islice(count(position), _MAX_TRIES),
            lambda p: to_channels(self.stream.decode(window[p].record), self.in_chans),
            lambda p: self.stream.name(window[p].key.index),
        )
        key = window[found].key
        return ImageSample(
            self.transform(image, sample_rng(self.collate.seed, *key, RandomStream.VIEW)), key, skipped=skipped
        )

    def _rows(self, first: int) -> Iterator[_Row]:
        """The endless stream from position ``first`` on."""
        epoch, to_skip = 0, first
        while True:
            num_rows = 0
            for row in self._epoch(epoch):
                num_rows += 1
                if num_rows > to_skip:
                    yield row
            if num_rows == 0:
                raise ValueError("data.path: the stream has no rows; check data.path and data.split")
            whole_epochs, to_skip = divmod(max(0, to_skip - num_rows), num_rows)
            epoch += 1 + whole_epochs

    def _epoch(self, epoch: int) -> Iterator[_Row]:
        rows = (_Row(SampleKey(epoch, number), record) for number, record in enumerate(self.stream))
        return _shuffle(rows, self.shuffle_buffer, sample_rng(self.collate.seed, epoch, 0, RandomStream.ORDER))


def _shuffle(rows: Iterable[_Row], buffer_size: int, rng: np.random.Generator) -> Iterator[_Row]:
    buffer: list[_Row] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(rng.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


class _Window:
    """Rows of a stream by position, as far ahead as asked for, until they are forgotten."""

    def __init__(self, rows: Iterator[_Row], first: int) -> None:
        self._rows = rows
        self._first = first
        self._held: deque[_Row] = deque()

    def __getitem__(self, position: int) -> _Row:
        missing = position - self._first + 1 - len(self._held)
        self._held.extend(islice(self._rows, max(0, missing)))
        return self._held[position - self._first]

    def forget_before(self, position: int) -> None:
        while self._first < position:
            if self._held:
                self._held.popleft()
            else:
                next(self._rows)
            self._first += 1


class EvalImages(Dataset[ImageSample]):
    """The one evaluation view of every image, with its label, by number.

    Args:
        source: the images.
        in_chans: 1 or 3.
        transform: makes the view.
    """

    def __init__(self, source: ImageSource, in_chans: int, transform: EvalTransform) -> None:
        self.source = source
        self.in_chans = in_chans
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ImageSample:
        key = SampleKey(0, index)
        try:
            image = to_channels(self.source.load(index), self.in_chans)
        except BadSample as error:
            return ImageSample(None, key, skipped=(f"{self.source.name(index)}: {error}",))
        return ImageSample(self.transform(image), key, self.source.label(index))


@dataclass(frozen=True)
class EvalCollate:
    """Evaluation views to a batch, without the images that could not be read.

    Attributes:
        image_shape: (C, H, W), for batches in which nothing could be read.
    """

    image_shape: tuple[int, int, int]

    def __call__(self, samples: Sequence[ImageSample]) -> Batch:
        """A batch of up to ``len(samples)`` views, in order; labels None if any image lacks one."""
        images = [sample.image for sample in samples if sample.image is not None]
        good = [sample for sample in samples if sample.image is not None]
        labels = [sample.label for sample in good if sample.label is not None]
        return Batch(
            modality=MODALITY,
            inputs=torch.stack(images) if images else torch.empty(0, *self.image_shape),
            sample_ids=torch.tensor([sample.key.index for sample in good], dtype=torch.int64),
            labels=torch.tensor(labels, dtype=torch.int64) if len(labels) == len(good) else None,
            skipped=_skipped(samples),
        )
