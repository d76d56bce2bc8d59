"""Classes and scores: images, and every task of GLUE."""

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
from d2v.values import Rate, buildable

MAX_CLASSES_SHOWN = 100


@buildable
class Classification:
    """Classification of each sample into one of C classes.

    Args:
        labels: names of the classes, by index.
        metric: "top1" (reported with top 5), or one of ``d2v.eval.scores.SCORES``.
        label_smoothing: share of a label that is spread over all classes; mixed labels are already smoothed.

    Raises:
        ValueError: ``metric`` is unknown, or there are fewer than two classes.
    """

    higher_is_better = True
    columns = ("predicted", "probability", "label")

    def __init__(self, labels: Sequence[str], metric: str = "top1", label_smoothing: Rate = 0.0) -> None:
        if metric != "top1" and metric not in scores.SCORES:
            raise ValueError(f"metric={metric}: choose one of top1, {', '.join(scores.SCORES)}")
        if len(labels) < 2:
            raise ValueError(f"the training data have {len(labels)} class: a classification needs at least two")
        if metric == "accuracy_f1" and len(labels) != 2:
            raise ValueError(f"metric=accuracy_f1: is of two classes, and there are {len(labels)}; choose top1")
        self.class_names = tuple(labels)
        self.metric = metric
        self.label_smoothing = label_smoothing

    @property
    def num_outputs(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the cross entropy, summed over samples.

        Raises:
            ValueError: samples have several classes each.
        """
        assert batch.labels is not None
        if batch.labels.ndim == 2 and not batch.labels.is_floating_point():
            raise ValueError("separator: a sample has one class in a classification; set it to null, or choose tagging")
        smoothing = 0.0 if batch.labels.is_floating_point() else self.label_smoothing
        total = F.cross_entropy(outputs.float(), batch.labels, reduction="sum", label_smoothing=smoothing)
        return Loss(total, torch.tensor(len(outputs), device=outputs.device))

    def predict(self, outputs: Tensor, batch: Batch) -> list[np.ndarray]:
        """Return (C,) probabilities for each sample."""
        return list(outputs.float().softmax(-1).cpu().numpy())

    def score(self, predictions: Sequence[np.ndarray], labels: Sequence[int]) -> dict[str, float]:
        """Return the scores of :mod:`d2v.eval.scores`."""
        probabilities, truth = np.stack(predictions), np.asarray(labels)
        if self.metric == "top1":
            return scores.top_k(probabilities, truth, (1, 5) if self.num_outputs > 5 else (1,))
        return scores.SCORES[self.metric](probabilities.argmax(1), truth)

    def answer(self, prediction: np.ndarray) -> int:
        """Return the index of the most probable class."""
        return int(prediction.argmax())

    def cells(self, prediction: np.ndarray, label: Any) -> tuple[str, ...]:
        """Return predicted class, its probability, and true class."""
        best = self.answer(prediction)
        return self.class_names[best], f"{prediction[best]:.4f}", "" if label is None else self.class_names[label]

    def report(self, predictions: Sequence[np.ndarray], labels: Sequence[int], names: Sequence[str]) -> str:
        """Return a Markdown table of all classes."""
        matrix, table = self.confusion(predictions, labels)
        lines = ["| class | samples | precision (%) | recall (%) | F1 (%) |", "|---|---:|---:|---:|---:|"]
        for name, row, values in list(zip(self.class_names, matrix, table, strict=True))[:MAX_CLASSES_SHOWN]:
            lines.append(f"| {name} | {row.sum()} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
        if self.num_outputs > MAX_CLASSES_SHOWN:
            lines.append(f"\nand {self.num_outputs - MAX_CLASSES_SHOWN} more")
        return "\n".join(lines) + "\n"

    def confusion(self, predictions: Sequence[np.ndarray], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the table of :func:`d2v.eval.scores.per_class`."""
        predicted = np.stack(predictions).argmax(1)
        return scores.per_class(predicted, np.asarray(labels), self.num_outputs)


@buildable
class Regression:
    """Regression of one number for each sample: the similarity of STS-B.

    Args:
        labels: lowest and highest value; in training, labels are scaled to 0 and 1 at these, as in the reference.
    """

    metric = "pearson_spearman"
    higher_is_better = True
    columns = ("predicted", "label")
    num_outputs = 1

    def __init__(self, labels: tuple[float, float]) -> None:
        self.low, self.high = labels

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the squared error, summed over samples."""
        assert batch.labels is not None
        target = (batch.labels.float() - self.low) / (self.high - self.low)
        total = F.mse_loss(outputs.float().squeeze(-1), target, reduction="sum")
        return Loss(total, torch.tensor(len(outputs), device=outputs.device))

    def predict(self, outputs: Tensor, batch: Batch) -> list[float]:
        """The number."""
        scores: list[float] = (outputs.float().squeeze(-1) * (self.high - self.low) + self.low).cpu().tolist()
        return scores

    def score(self, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
        """Return the scores of :func:`d2v.eval.scores.pearson_spearman`."""
        return scores.pearson_spearman(np.asarray(predictions), np.asarray(labels))

    def answer(self, prediction: float) -> float:
        """The number."""
        return prediction

    def cells(self, prediction: float, label: Any) -> tuple[str, ...]:
        """Return the predicted and the true number."""
        return f"{prediction:.3f}", "" if label is None else f"{label:.3f}"

    def report(self, predictions: Sequence[float], labels: Sequence[float], names: Sequence[str]) -> str:
        """Return "", because there is no report."""
        return ""
