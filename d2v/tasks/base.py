"""Protocol of a fine-tuning task: number of outputs, loss, predictions and their score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from d2v.types import Batch


@dataclass(frozen=True)
class Loss:
    """A batch's loss, as a sum, so that devices can be combined exactly: the loss is ``sum / count``.

    Attributes:
        sum: scalar.
        count: scalar, what it is the mean over: samples, or letters.
    """

    sum: Tensor
    count: Tensor


class Task(Protocol):
    """Meaning of a head's outputs."""

    @property
    def metric(self) -> str:
        """Name of the score that chooses the best checkpoint."""

    @property
    def higher_is_better(self) -> bool:
        """True if a higher ``metric`` is better."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table of predictions, after the sample's name."""

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the head."""

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Loss of the head's outputs for a labelled batch."""

    def predict(self, outputs: Tensor, batch: Batch) -> list[Any]:
        """One prediction a sample, on the CPU."""

    def score(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """``metric`` and others, fractions."""

    def answer(self, prediction: Any) -> Any:
        """Answer of a prediction: a class's number, a score or a text."""

    def cells(self, prediction: Any, label: Any) -> tuple[str, ...]:
        """A row of the predictions' table; ``label`` is None where it is not known."""

    def report(self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str]) -> str:
        """Report in Markdown: classes, or the worst utterances; "" for none."""
