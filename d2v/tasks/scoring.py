"""A fine-tuned model's predictions on an evaluation set, their score, and what is written of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2v.tasks.base import Task
from d2v.types import NO_LETTER, Batch


class Diverged(RuntimeError):
    """A model's outputs are not finite."""


@dataclass(frozen=True)
class Scored:
    """Predictions in the data's order.

    Attributes:
        sample_ids: numbers of the samples.
        predictions: as the task makes them.
        labels: as the data have them; None where they are not known.
        scores: by name, fractions; {} without labels.
        skipped: samples that could not be read, as "name: reason".
    """

    sample_ids: list[int]
    predictions: list[Any]
    labels: list[Any] | None
    scores: dict[str, float]
    skipped: tuple[str, ...]


def score(
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Predict every batch and score what has labels.

    Args:
        model: in eval mode.
        task: makes predictions of its outputs.
        batches: a whole evaluation set, in any order.
        device: of the model.
        progress: called with the number of samples so far.

    Raises:
        Diverged: outputs are not finite.
        ValueError: there is nothing to score, or only some of it has labels.
    """
    ids: list[int] = []
    predictions: list[Any] = []
    labels: list[Any] = []
    skipped: list[str] = []
    with torch.inference_mode():
        for batch in batches:
            skipped.extend(batch.skipped)
            if len(batch.sample_ids) == 0:
                continue
            on_device = batch.to(device, non_blocking=True)
            outputs = model(on_device)
            if not bool(outputs.isfinite().all()):
                raise Diverged("the model's outputs are not finite: lower optim.lr, or set trainer.gradient_clip_val")
            predictions.extend(task.predict(outputs, on_device))
            ids.extend(batch.sample_ids.tolist())
            labels.extend(_labels(batch.labels, len(batch.sample_ids)))
            if progress is not None:
                progress(len(ids))
    if not ids:
        raise ValueError("there is no sample to score: the evaluation set is empty, or none of it can be read")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    predictions, labels = [predictions[i] for i in order], [labels[i] for i in order]
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise ValueError("some of the samples to score have no label: give them one, or leave them out")
    labelled = not unlabelled
    scores = task.score(predictions, labels) if labelled else {}
    return Scored([ids[i] for i in order], predictions, labels if labelled else None, scores, tuple(skipped))


def _labels(labels: Tensor | None, count: int) -> list[Any]:
    if labels is None:
        return [None] * count
    rows: list[Any] = labels.tolist()
    return [[x for x in row if x != NO_LETTER] for row in rows] if labels.ndim == 2 else rows


def write_predictions(path: Path, found: Scored, task: Task, name: Callable[[int], str]) -> Path:
    """A table of every sample's name, prediction and label, tab-separated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = found.labels or [None] * len(found.predictions)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["sample", *task.columns])
        for i, prediction, label in zip(found.sample_ids, found.predictions, labels, strict=True):
            writer.writerow([name(i), *task.cells(prediction, label)])
    return path
