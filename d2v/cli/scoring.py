"""Scoring of fine-tuned models on their own or other evaluation sets, for ``d2v evaluate``."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.keys import argument_keys
from d2v.cli.loading import best_device, load_data
from d2v.cli.settings import Evaluate, Finetune
from d2v.data.contents import describe_sources
from d2v.data.labelled import FinetuneSet
from d2v.data.protocol import FinetuneData
from d2v.data.scored import whole_as_val, with_known_labels
from d2v.errors import in_keys
from d2v.interop.build import build
from d2v.interop.checkpoints import Checkpoint
from d2v.runs.results import RESULTS
from d2v.tasks.base import Task
from d2v.tasks.results import score_and_write
from d2v.tasks.transcription import Transcription

log = logging.getLogger(__name__)


def score_finetuned(cfg: DictConfig, settings: Evaluate, trained: Checkpoint, run_dir: Path, num_workers: int) -> None:
    """Print the scores and write them, with predictions and reports, to the command's folder.

    Raises:
        ValueError: a probe was requested, or the labels of the data differ from those of training.
    """
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if key in ("probe", "network", "baselines", "precision"):
            raise ValueError(
                f"{override}: checkpoint={settings.checkpoint} is fine-tuned, and is scored; to probe its encoder, "
                "d2v export it"
            )
    config = trained.config
    dataset = whole_as_val(load_data(cfg, trained), str(settings.checkpoint))
    # The share of labels used in training does not matter here.
    labels = build(config["labels"], key="labels")
    data: FinetuneSet[Any] = dataset.finetune(**{key: value for key, value in labels.items() if key != "hours"})
    if settings.batch_size != "auto":
        data = replace(data, eval_batch_size=settings.batch_size)
    known = config["label_names"]
    data = with_known_labels(data, known, str(settings.checkpoint))
    task: Any = build(config["task"], {"labels": known}, key="task")
    if settings.decoder is not None:
        set_decoder(task, settings.decoder)
    elif config.get("decoder") is not None:  # as it was fine-tuned with
        task.decoder = build(config["decoder"], {"letters": task.letters}, key="decoder")
    print(in_keys("\n".join(describe_sources(data.evals)), argument_keys(cfg), only_values=True), flush=True)
    assert trained.model is not None
    model = trained.model.to(best_device())
    table = score_and_write(
        run_dir,
        model,
        task,
        data,
        best_device(),
        num_workers,
        checkpoint=str(settings.checkpoint),
        step=trained.step,
    )
    print(f"checkpoint: {trained.path}\n{table}\nresults: {run_dir / RESULTS}")


def set_decoder(task: Any, node: dict[str, Any]) -> None:
    """Set the decoder of a transcription task.

    Raises:
        ValueError: the task is not transcription.
    """
    if not isinstance(task, Transcription):
        raise ValueError("decoder=...: only transcripts are decoded; remove it")
    task.decoder = build(node, {"letters": task.letters}, key="decoder", trusted=True)


def build_task(settings: Finetune, data: FinetuneData) -> Task:
    """Return the task of the labels, with the configured decoder."""
    task: Task = build(settings.task, {"labels": data.labels}, key="task", trusted=True)
    if settings.decoder is not None:
        set_decoder(task, settings.decoder)
    return task
