"""Results of a fine-tuned model: scores, predictions, reports, pictures, submissions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2v.eval.figures.confusion import plot_confusion
from d2v.eval.results import scores_table
from d2v.runs.files import replace_text, writing
from d2v.runs.results import CONFUSION, PREDICTIONS, REPORT, SUBMISSION, Results, Row, write_results
from d2v.tasks.classification import MAX_CLASSES_SHOWN, Classification
from d2v.tasks.scoring import Scored, score, write_predictions
from d2v.terminal import watched

log = logging.getLogger(__name__)


def score_and_write(
    folder: Path, model: nn.Module, task: Any, data: Any, device: torch.device, num_workers: int = 0, **about: Any
) -> str:
    """Score every evaluation set of ``data`` and write ``results.json``, ``results.md`` and related files.

    These are ``predictions_<set>.tsv``; ``report_<set>.md`` and ``confusion_<set>.png`` if the task has them; and
    ``submission/`` for sets with hidden labels.

    Args:
        folder: folder of the run.
        model: fine-tuned model in eval mode.
        task: task that the model was trained for.
        data: a :class:`d2v.data.protocol.FinetuneData`.
        device: device of the model.
        num_workers: number of data workers.
        about: further JSON values for ``results.json``.

    Returns:
        The table of scores in Markdown, in percent.
    """
    scored: dict[str, Scored] = {}
    for name, source in data.evals.items():
        batches = watched(data.eval_loader(name, num_workers), f"scoring {name}")
        result = scored[name] = score(model, task, batches, device)
        with writing("output_dir", folder):
            write_predictions(folder / PREDICTIONS.format(name), result, task, source.name)
        if result.labels is None:
            if len(result.predictions) < len(source):
                log.warning("no submission of %s: %d of its samples cannot be read", name, len(result.skipped))
            elif data.submission is not None:
                answers = [task.answer(prediction) for prediction in result.predictions]
                data.submission(folder / SUBMISSION, name, answers)
            continue
        report = task.report(result.predictions, result.labels, [source.name(i) for i in result.sample_ids])
        if report:
            with writing("output_dir", folder):
                replace_text(folder / REPORT.format(name), report)
    rows = [
        Row(
            "fine-tuned model",
            result.scores,
            name,
            task.metric,
            samples=len(result.predictions),
            skipped=[*getattr(data.evals[name], "left_out", ()), *result.skipped],
        )
        for name, result in scored.items()
    ]
    table = scores_table([(row.set, row.scores) for row in rows if row.scores], "set")
    write_results(folder, Results(rows, about), table)
    if isinstance(task, Classification) and task.num_outputs <= MAX_CLASSES_SHOWN:
        _draw(folder, task, scored)
    return table


def _draw(folder: Path, task: Classification, scored: dict[str, Scored]) -> None:
    """Draw the confusion matrix of every labelled set; without matplotlib, log a warning."""
    for name, result in scored.items():
        if result.labels is not None:
            matrix, _ = task.confusion(result.predictions, result.labels)
            try:
                plot_confusion(matrix, task.class_names, folder / CONFUSION.format(name))
            except ImportError as error:
                log.warning("no %s: %s", CONFUSION.format(name), error)
