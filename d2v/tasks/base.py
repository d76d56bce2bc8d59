"""What fine-tuning needs to know of a task: how many outputs, the loss, predictions, and their score."""

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
    """One kind of output, and what is made of it."""

    @property
    def metric(self) -> str:
        """Which of the scores chooses the best checkpoint."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the predictions' table, after the sample's name."""

    @property
    def num_outputs(self) -> int:
        """Outputs of the head."""

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Of the head's outputs for a labelled batch."""

    def predict(self, outputs: Tensor, batch: Batch) -> list[Any]:
        """One prediction a sample, on the CPU."""

    def score(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """``metric`` and others, fractions."""

    def answer(self, prediction: Any) -> Any:
        """What it comes down to: a class's number, a score, a text."""

    def cells(self, prediction: Any, label: Any) -> tuple[str, ...]:
        """A row of the predictions' table; ``label`` is None where it is not known."""

    def report(self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str]) -> str:
        """More about them, in Markdown; "" for nothing."""
