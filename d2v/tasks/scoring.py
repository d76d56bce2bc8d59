"""Predictions of a fine-tuned model on an evaluation set, their scores, and the table of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2v.errors import UserError
from d2v.runs.files import replace_text
from d2v.tasks.base import Task
from d2v.types import NO_LETTER, Batch


class Diverged(UserError, RuntimeError):
    """The outputs of a model are not finite."""

    state = "diverged"


@dataclass(frozen=True)
class Predicted:
    """Predictions for an evaluation set or a part of it, in the order in which they were made.

    Attributes:
        sample_ids: indices of the samples in the data set.
        predictions: predictions of the task.
        labels: labels of the data; None where unknown.
        skipped: samples that could not be read, as "name: reason".
        finite: whether all outputs of the model were finite; prediction stops at the first that are not.
    """

    sample_ids: list[int] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    finite: bool = True


@dataclass(frozen=True)
class Scored:
    """Predictions in the data's order.

    Attributes:
        sample_ids: indices of the samples in the data set.
        predictions: predictions of the task.
        labels: labels of the data; None where unknown.
        scores: by name, fractions; {} without labels.
        skipped: samples that could not be read, as "name: reason".
    """

    sample_ids: list[int]
    predictions: list[Any]
    labels: list[Any] | None
    scores: dict[str, float]
    skipped: tuple[str, ...]


def predict(model: nn.Module, task: Task, batches: Iterable[Batch], device: torch.device) -> Predicted:
    """Predict every batch.

    Args:
        model: fine-tuned model in eval mode.
        task: turns the model's outputs into predictions.
        batches: batches of an evaluation set or a part of it, in any order.
        device: device of the model.
    """
    result = Predicted()
    with torch.inference_mode():
        for batch in batches:
            result.skipped.extend(batch.skipped)
            if len(batch.sample_ids) == 0:
                continue
            on_device = batch.to(device, non_blocking=True)
            outputs = model(on_device)
            if not bool(outputs.isfinite().all()):
                return replace(result, finite=False)
            result.predictions.extend(task.predict(outputs, on_device))
            result.sample_ids.extend(batch.sample_ids.tolist())
            result.labels.extend(_labels(batch.labels, len(batch.sample_ids)))
    return result


def judge(task: Task, parts: Sequence[Predicted]) -> Scored:
    """Score the predictions of one evaluation set; without labels, only sort them.

    Args:
        task: task of the predictions.
        parts: parts of the evaluation set, such as the shares of all processes.

    Raises:
        Diverged: outputs were not finite.
        ValueError: there is nothing to score, or only some samples have labels.
    """
    if not all(part.finite for part in parts):
        raise Diverged("the model's outputs are not finite: lower lr=..., or set gradient_clip_val")
    rows = [row for part in parts for row in zip(part.sample_ids, part.predictions, part.labels, strict=True)]
    if not rows:
        raise ValueError("there is no sample to score: the evaluation set is empty, or none of it can be read")
    ids, predictions, labels = (list(column) for column in zip(*sorted(rows, key=itemgetter(0)), strict=True))
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise ValueError("some of the samples to score have no label: give them one, or leave them out")
    labelled = not unlabelled
    scores = task.score(predictions, labels) if labelled else {}
    skipped = tuple(entry for part in parts for entry in part.skipped)
    return Scored(ids, predictions, labels if labelled else None, scores, skipped)


def score(model: nn.Module, task: Task, batches: Iterable[Batch], device: torch.device) -> Scored:
    """Run :func:`predict` and :func:`judge` on a whole evaluation set."""
    return judge(task, [predict(model, task, batches, device)])


def _labels(labels: Tensor | None, count: int) -> list[Any]:
    if labels is None:
        return [None] * count
    rows: list[Any] = labels.tolist()
    return [[x for x in row if x != NO_LETTER] for row in rows] if labels.ndim == 2 else rows


def write_predictions(path: Path, result: Scored, task: Task, name: Callable[[int], str]) -> Path:
    """Write a tab-separated table of name, prediction and label of every sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = result.labels or [None] * len(result.predictions)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["sample", *task.columns])
    for i, prediction, label in zip(result.sample_ids, result.predictions, labels, strict=True):
        writer.writerow([name(i), *task.cells(prediction, label)])
    replace_text(path, text.getvalue())
    return path
