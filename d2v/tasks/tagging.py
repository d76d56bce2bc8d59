"""Tagging: every sample has any number of C classes, as in AudioSet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.eval import scores
from d2v.tasks.base import Loss
from d2v.types import Batch
from d2v.values import buildable

_SHOWN = 3  # most probable classes in the table of predictions


@buildable
class Tagging:
    """Independent decisions for C classes.

    Args:
        labels: names of the classes, by index.
    """

    metric = "map"
    higher_is_better = True
    columns = ("predicted", "probabilities", "labels")

    def __init__(self, labels: Sequence[str]) -> None:
        self.class_names = tuple(labels)

    @property
    def num_outputs(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the binary cross entropy, the mean over classes, summed over samples."""
        assert batch.labels is not None
        if batch.labels.ndim != 2:
            raise ValueError("separator=null: tagging needs recordings with lists of classes; set separator=','")
        total = F.binary_cross_entropy_with_logits(outputs.float(), self._target(batch.labels), reduction="sum")
        return Loss(total / self.num_outputs, torch.tensor(len(outputs), device=outputs.device))

    def _target(self, labels: Tensor) -> Tensor:
        """Return (B, C) float32, 1 for the classes in (B, L) labels, of which negative ones are padding."""
        places = labels.masked_fill(labels < 0, self.num_outputs)
        target = torch.zeros(len(labels), self.num_outputs + 1, device=labels.device)
        return target.scatter_(1, places, 1.0)[:, : self.num_outputs]

    def predict(self, outputs: Tensor, batch: Batch) -> list[np.ndarray]:
        """Return (C,) probabilities for each sample."""
        return list(outputs.float().sigmoid().cpu().numpy())

    def score(self, predictions: Sequence[np.ndarray], labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """Return the score of :func:`d2v.eval.scores.mean_average_precision`."""
        truth = np.zeros((len(labels), self.num_outputs), dtype=bool)
        for row, numbers in zip(truth, labels, strict=True):
            row[list(numbers)] = True
        return scores.mean_average_precision(np.stack(predictions), truth)

    def answer(self, prediction: np.ndarray) -> list[int]:
        """Return the indices of the classes with a probability above one half."""
        return [int(i) for i in np.flatnonzero(prediction > 0.5)]

    def cells(self, prediction: np.ndarray, label: Any) -> tuple[str, ...]:
        """Return the most probable classes, their probabilities, and the true classes."""
        best = np.argsort(-prediction, kind="stable")[:_SHOWN]
        names = "; ".join(self.class_names[i] for i in best)
        truth = "" if label is None else "; ".join(self.class_names[i] for i in label)
        return names, "; ".join(f"{prediction[i]:.4f}" for i in best), truth

    def report(self, predictions: Sequence[np.ndarray], labels: Sequence[Sequence[int]], names: Sequence[str]) -> str:
        """Return "", because there is no report."""
        return ""
