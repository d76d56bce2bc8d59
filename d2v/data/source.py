"""Protocols of sources (samples by index) and of views, which turn samples into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.data.bad_samples import BadSample
from d2v.data.keys import SampleKey
from d2v.types import NO_LETTER

MAX_TRIES = 1000  # samples in a row, for one that can be read


# A class, a score, or the letters of a transcript.
Label = int | float | tuple[int, ...]


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Samples by number: images, waveforms, blocks of text.

    A source may have ``lengths``, of every sample in any unit, and ``contents``
    (:class:`d2v.data.contents.Contents`), for the summary before a run.
    """

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every label, or None where there are no classes."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> T_co:
        """The decoded sample. Raises BadSample."""

    def label(self, index: int) -> Label | None:
        """The sample's label, or None if it has none; a class is an index into ``class_names``."""

    def name(self, index: int) -> str:
        """Return the name of the sample in messages: a path relative to the root, or an id."""


# A random view of a decoded sample, drawn from its own generator; it may raise BadSample, too.
RandomView = Callable[[T, np.random.Generator], Tensor]


# The one view for evaluation.
FixedView = Callable[[T], Tensor]


class Sample(NamedTuple):
    """One row of a future batch.

    Attributes:
        inputs: inputs of the frontend, without the batch axis; None if the sample could not be read (evaluation only).
        key: epoch and index of the sample.
        label: label of the sample, if any.
        skipped: unreadable samples that this one replaces, as "name: reason".
        step_size: ``Batch.step_size``.
        num_read: this one's part of ``Batch.num_read``.
    """

    inputs: Tensor | None
    key: SampleKey
    label: Label | None = None
    skipped: tuple[str, ...] = ()
    step_size: int | None = None
    num_read: int | None = None


def skipped_in(samples: Iterable[Sample]) -> tuple[str, ...]:
    """``Batch.skipped`` of these samples."""
    return tuple(entry for sample in samples for entry in sample.skipped)


def labels_of(samples: Sequence[Sample]) -> Tensor | None:
    """``Batch.labels`` of these samples, or None if any of them lacks a label."""
    labels: list[Any] = [sample.label for sample in samples if sample.label is not None]
    if len(labels) < len(samples):
        return None
    if labels and isinstance(labels[0], tuple):
        rows = [torch.tensor(label, dtype=torch.int64) for label in labels]  # () has no type of its own
        return pad_sequence(rows, batch_first=True, padding_value=NO_LETTER)
    return torch.tensor(labels, dtype=torch.float32 if labels and isinstance(labels[0], float) else torch.int64)


def first_good(
    candidates: Iterable[T], make: Callable[[T], Tensor], name: Callable[[T], str]
) -> tuple[T, Tensor, tuple[str, ...]]:
    """Return the first readable candidate, its view, and "name: reason" of those before it.

    Raises:
        BadSample: no candidate can be read.
    """
    skipped: list[str] = []
    for candidate in candidates:
        try:
            return candidate, make(candidate), tuple(skipped)
        except BadSample as error:
            skipped.append(f"{name(candidate)}: {error}")
    if not skipped:
        raise BadSample("there is no sample to take the place of one that cannot be read")
    raise BadSample(f"{len(skipped)} samples in a row cannot be read, from {skipped[0]} to {skipped[-1]}")
