"""Scores of fine-tuned models: at the end of fine-tuning, and by ``d2v evaluate``, on other sets, too."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.loading import best_device, load_data
from d2v.cli.settings import Evaluate, Finetune
from d2v.data.contents import describe_sources
from d2v.data.labelled import FinetuneSet
from d2v.data.protocol import FinetuneData
from d2v.data.scored import whole_as_val, with_known_labels
from d2v.interop.build import build
from d2v.interop.checkpoints import Checkpoint
from d2v.interop.native import RunCheckpoint
from d2v.lit.callbacks.score import ScoreEvery
from d2v.lit.finetune import FinetuneModule
from d2v.models.heads import FinetunedModel
from d2v.runs.results import RESULTS
from d2v.tasks.base import Task
from d2v.tasks.results import score_and_write
from d2v.tasks.transcription import Transcription

log = logging.getLogger(__name__)


def score_finetuned(cfg: DictConfig, settings: Evaluate, trained: Checkpoint, run_dir: Path, num_workers: int) -> None:
    """Print the scores and write them, with predictions and reports, to the command's folder.

    Raises:
        ValueError: a probe is asked for, or the data's labels mean other things than those it was trained on.
    """
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if key in ("probe", "network", "baselines", "precision"):
            raise ValueError(
                f"{override}: checkpoint={settings.checkpoint} is fine-tuned, and is scored; to probe its encoder, "
                "d2v export it"
            )
    config = trained.config
    dataset = whole_as_val(load_data(cfg, trained), settings.checkpoint)
    # Which part of the labels was trained on is of no interest here.
    labels = build(config["labels"], key="labels")
    data: FinetuneSet[Any] = dataset.finetune(**{key: value for key, value in labels.items() if key != "hours"})
    if settings.batch_size != "auto":
        data = replace(data, eval_batch_size=settings.batch_size)
    known = config["label_names"]
    data = with_known_labels(data, known, settings.checkpoint)
    task: Any = build(config["task"], {"labels": known}, key="task")
    if settings.decoder is not None:
        set_decoder(task, settings.decoder)
    elif config.get("decoder") is not None:  # as it was fine-tuned with
        task.decoder = build(config["decoder"], {"letters": task.letters}, key="decoder")
    print("\n".join(describe_sources(data.evals)), flush=True)
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
    """Let a transcription decode as ``decoder`` says; ValueError if the task is another."""
    if not isinstance(task, Transcription):
        raise ValueError("decoder=...: only transcripts are decoded; remove it")
    task.decoder = build(node, {"letters": task.letters}, key="decoder", trusted=True)


def build_task(settings: Finetune, data: FinetuneData) -> Task:
    """Return the task of the labels, with the decoder that is configured."""
    task: Task = build(settings.task, {"labels": data.labels}, key="task", trusted=True)
    if settings.decoder is not None:
        set_decoder(task, settings.decoder)
    return task


def score_best(run_dir: Path, module: FinetuneModule, data: FinetuneData, trainer: L.Trainer, num_workers: int) -> None:
    """Score the best checkpoint on every evaluation set, and write what was found."""
    best = next((c for c in trainer.callbacks if isinstance(c, ScoreEvery)), None)  # type: ignore[attr-defined]
    step, model = trainer.global_step, module.scored
    if best is not None and best.path.is_file():
        checkpoint = RunCheckpoint.load(best.path)
        whole = checkpoint.build_model()  # the module's may be spread over devices
        assert isinstance(whole, FinetunedModel)
        model = whole
        step = checkpoint.step
    else:
        log.warning("there is no best checkpoint: the last step is scored")
    model = model.eval().to(best_device())
    table = score_and_write(run_dir, model, module.task, data, best_device(), num_workers, step=step, seed=module.seed)
    print(table)
    print(f"results: {run_dir / RESULTS}\nrun: {run_dir}")
