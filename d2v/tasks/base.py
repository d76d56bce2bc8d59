"""Protocol of a fine-tuning task: number of outputs, loss, predictions and their score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from d2v.types import Batch


@dataclass(frozen=True)
class Loss:
    """Loss of a batch, as a sum, so that devices can be combined exactly: the loss is ``sum / count``.

    Attributes:
        sum: scalar tensor.
        count: scalar tensor, number of samples or letters.
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
        """Return the loss of the head's outputs for a labelled batch."""

    def predict(self, outputs: Tensor, batch: Batch) -> list[Any]:
        """Return one prediction for each sample, on the CPU."""

    def score(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """Return scores by name, fractions; ``metric`` is among them."""

    def answer(self, prediction: Any) -> Any:
        """Return the answer of a prediction: the index of a class, a score or a text."""

    def cells(self, prediction: Any, label: Any) -> tuple[str, ...]:
        """Return a row of the table of predictions; ``label`` is None if unknown."""

    def report(self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str]) -> str:
        """Return a report in Markdown: classes, or the worst utterances; "" for none."""
