"""Scoring on held-out data during fine-tuning: keeps the best checkpoint, and stops early."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from d2v.eval.features import eval_mode
from d2v.interop.native import RunCheckpoint
from d2v.lit.callbacks.stop import find_stop
from d2v.lit.checkpoint_io import save
from d2v.lit.finetune import FinetuneDataModule, FinetuneModule
from d2v.lit.steps import ends_step
from d2v.runs.checkpoints import BEST, FOLDER
from d2v.tasks.scoring import Diverged, judge, predict
from d2v.types import Batch
from d2v.values import PositiveInt, PositiveSteps, buildable

log = logging.getLogger(__name__)


@buildable
class ScoreEvery(L.Callback):
    """Logs ``val/...``, keeps the checkpoint of the best score as ``best.ckpt``, and stops without further improvement.

    Of equal scores the later one is kept, as in fairseq: while a score does not move, such as the correlation of a
    model that predicts one class, the later model has learned more. For ``patience``, an equal score is no better one.

    Every process predicts its share of the evaluation set; under FSDP, where none has the whole model, all of it.

    A resumed run keeps comparing with the best score so far. If ``best.ckpt`` does not belong to it (lost, damaged, or
    written after the resumed checkpoint), the log says so, and the comparison starts again.

    A run of one process also stops between two batches of scoring; the resumed run repeats that scoring first.

    Args:
        run_dir: folder of the run; the best checkpoint is in its folder ``checkpoints``.
        every_n_steps: optimizer steps between two scorings; the last step is always scored; None: ten times a run.
        patience: stop after so many scorings in a row without a new best score; None: never.
    """

    writes_best: ClassVar[bool] = True  # not written by another callback

    def __init__(
        self, run_dir: str | Path, every_n_steps: PositiveSteps | None = None, patience: PositiveInt | None = None
    ) -> None:
        self.path = Path(run_dir) / FOLDER / BEST
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        self.is_due = False  # scoring of the last step was interrupted

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far, with which a resumed run keeps comparing."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "is_due": self.is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best, self.best_step, self.waited = (state_dict[key] for key in ("best", "best_step", "waited"))
        self.is_due = state_dict["is_due"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a best checkpoint that is lost, set aside one of a later step, and repeat an interrupted scoring."""
        problem = self._find_problem(trainer.global_step) if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            log.warning("%s: %s; comparing anew from step %d on", self.path, problem, trainer.global_step)
            self.best, self.best_step, self.waited = None, 0, 0
        if self.is_due:
            assert isinstance(pl_module, FinetuneModule)
            scores = self._score(trainer, pl_module)
            for logger in trainer.loggers if scores else []:
                logger.log_metrics({f"val/{name}": value for name, value in scores.items()}, step=trainer.global_step)
            self._compare(trainer, pl_module, scores)

    def _find_problem(self, step: int) -> str | None:
        """Return why the best checkpoint so far cannot be used; None if it can, or if there was none."""
        if not self.path.is_file():
            return None if self.best is None else f"the best checkpoint, step {self.best_step}, is lost"
        try:
            there = RunCheckpoint.load(self.path).step  # compares checksums
        except (OSError, ValueError) as error:
            self.path.replace(self.path.with_name(f"{BEST}.damaged"))
            return f"the best checkpoint is damaged ({error}): renamed to {BEST}.damaged"
        if there <= step and there == self.best_step and self.best is not None:
            return None
        self.path.replace(self.path.with_name(f"{BEST}.left"))
        if there > step:
            return f"is of step {there}, a future this run has left: renamed to {BEST}.left"
        return f"is of step {there}, which was not the best when step {step} was saved: renamed to {BEST}.left"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score every ``every_n_steps`` and at the end."""
        step = trainer.global_step
        every = self.every_n_steps or max(1, trainer.max_steps // 10)
        if not ends_step(trainer, batch_idx) or (step % every and step < trainer.max_steps):
            return
        assert isinstance(pl_module, FinetuneModule)
        scores = self._score(trainer, pl_module)
        for name, value in scores.items():  # before a checkpoint is saved, which logs the step's metrics
            pl_module.log(f"val/{name}", value, rank_zero_only=True)
        self._compare(trainer, pl_module, scores)

    def _score(self, trainer: L.Trainer, module: FinetuneModule) -> dict[str, float]:
        """Return the scores of the last step; {} if a stop signal interrupts the scoring."""
        self.is_due = True
        try:
            scores = _score(trainer, module)
        except Interrupted:
            log.info("scoring of step %d was interrupted; the run that goes on does it first", trainer.global_step)
            return {}
        self.is_due = False
        return scores

    def _compare(self, trainer: L.Trainer, module: FinetuneModule, scores: dict[str, float]) -> None:
        """Keep the step's checkpoint if it is the best; stop the run if there was no new best for ``patience``."""
        if not scores:
            return
        step, task = trainer.global_step, module.task
        gain = self._gain(scores[task.metric], task.higher_is_better)
        # If it cannot be saved, the previous one stays the best.
        kept = gain >= 0 and save(trainer, self.path, weights_only=True) is None
        if kept:
            self.best, self.best_step = scores[task.metric], step
        if kept and gain > 0:
            self.waited = 0
        elif gain <= 0:
            self.waited += 1
            if self.patience is not None and self.waited >= self.patience:
                log.info("no better %s in %d scorings: stopping at step %d", task.metric, self.waited, step)
                trainer.should_stop = True

    def _gain(self, value: float, higher_is_better: bool) -> float:
        """Return by how much a score is better than the best so far; infinite for the first."""
        if self.best is None:
            return math.inf
        return value - self.best if higher_is_better else self.best - value


class Interrupted(Exception):
    """A stop signal arrived during scoring."""


def _until_told(batches: Iterable[Batch], trainer: L.Trainer) -> Iterator[Batch]:
    """Yield batches; raise Interrupted on a stop signal, unless there are several processes or it is the last step."""
    stop = find_stop(trainer)
    for batch in batches:
        yield batch
        if trainer.world_size == 1 and trainer.global_step < trainer.max_steps and stop.is_told():
            raise Interrupted


def _score(trainer: L.Trainer, module: FinetuneModule) -> dict[str, float]:
    """Return the scores, the same in every process."""
    datamodule: FinetuneDataModule = trainer.datamodule  # type: ignore[attr-defined]
    share = isinstance(trainer.strategy, DDPStrategy)
    batches = datamodule.score_loader(trainer.global_rank, trainer.world_size) if share else datamodule.score_loader()
    with torch.random.fork_rng(devices=[]), eval_mode(module.scored):
        part = predict(module.scored, module.task, _until_told(batches, trainer), module.device)
    if not share:
        return judge(module.task, [part]).scores
    parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    dist.gather_object(part, parts)
    outcome: dict[str, float] | Exception | None = None
    if parts is not None:
        try:
            outcome = judge(module.task, parts).scores
        except (Diverged, ValueError) as error:  # so that the others do not wait for this process
            outcome = error
    outcome = trainer.strategy.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome is not None
    return outcome
