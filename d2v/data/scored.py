"""Other labelled data on which a fine-tuned model is scored, with classes matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np

from d2v.data.contents import Contents, first_of
from d2v.data.labelled import FinetuneSet
from d2v.data.source import Source, T, T_co


@dataclass(frozen=True)
class Renumbered(Generic[T_co]):
    """Source with classes renumbered to those of a model.

    Attributes:
        source: source with its own numbers.
        numbers: the model's number for every class of the source.
        class_names: the model's classes.
    """

    source: Source[T_co]
    numbers: Sequence[int]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> T_co:
        """The decoded sample. Raises BadSample."""
        return self.source.load(index)

    def label(self, index: int) -> Any:
        """The model's number of the sample's class, or its numbers of several; None if it has no label."""
        number: Any = self.source.label(index)
        if isinstance(number, tuple):
            return tuple(self.numbers[n] for n in number)
        return None if number is None else self.numbers[number]

    def name(self, index: int) -> str:
        """Return the name of the sample."""
        return self.source.name(index)

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of the samples, where they differ."""
        lengths: np.ndarray | None = getattr(self.source, "lengths", None)
        return lengths

    @property
    def left_out(self) -> Sequence[str]:
        """Samples that could not be used, as "name: reason"."""
        entries: Sequence[str] = getattr(self.source, "left_out", ())
        return entries

    @property
    def contents(self) -> Contents:
        """Contents of the source."""
        contents: Contents = getattr(self.source, "contents", None) or Contents()
        return contents


def whole_as_val(dataset: Any, checkpoint: str) -> Any:
    """Return the data set with labelled validation samples: its own, or all samples of a single folder or list.

    Args:
        dataset: data set of any modality.
        checkpoint: path of the checkpoint, for messages.

    Raises:
        ValueError: no sample has a label.
    """
    if not hasattr(dataset, "val"):
        return dataset
    val, labelled = dataset.val, getattr(dataset, "probe_train", None)
    if labelled is None and hasattr(dataset.train, "__len__") and getattr(dataset.train, "has_transcripts", False):
        labelled = dataset.train
    if val is None and labelled is None:
        raise ValueError(
            f"checkpoint={checkpoint} is fine-tuned, but these data have no labels to score it on: give at least two "
            "folders of classes, label_column, transcripts=..., or whatever labels data of this kind"
        )
    return replace(dataset, val=val or labelled, probe_train=labelled or val)


def with_known_labels(data: FinetuneSet[T], known: Any, checkpoint: str) -> FinetuneSet[T]:
    """Return the data with classes matched by name to those of a model.

    Args:
        data: data to score; some classes may be missing, and their order may differ.
        known: meaning of the model's outputs: names of classes, letters, or the lowest and the highest score.
        checkpoint: path of the checkpoint, for messages.

    Raises:
        ValueError: the data have unknown classes, or labels of another kind.
    """
    if list(data.labels) == list(known):
        return data
    if isinstance(known, str) or not all(isinstance(label, str) for label in (*known, *data.labels)):
        raise ValueError(
            f"checkpoint={checkpoint} knows the labels {_shown(known)}, these data have {_shown(data.labels)}: "
            "score it on data with the same"
        )
    unknown = [name for name in data.labels if name not in known]
    if unknown:
        raise ValueError(
            f"checkpoint={checkpoint}: it knows {len(known)} classes ({_shown(known)}), and these data have others: "
            f"{_shown(unknown)}; leave them out, or name them as the model's"
        )
    numbers = [list(known).index(name) for name in data.labels]
    evals: Mapping[str, Source[T]] = {name: Renumbered(s, numbers, tuple(known)) for name, s in data.evals.items()}
    return replace(data, labels=tuple(known), evals=evals)


def _shown(labels: Any) -> str:
    return labels if isinstance(labels, str) else first_of(map(str, labels), 10)
