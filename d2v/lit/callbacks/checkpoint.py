"""Saving of checkpoints at intervals and at the end of a run, including an early end."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from d2v.errors import UserError
from d2v.lit.callbacks.stop import agree
from d2v.lit.checkpoint_io import NotSaved, point, save
from d2v.lit.module import TrainingModule
from d2v.lit.steps import ends_step, is_logged_step
from d2v.runs.checkpoints import BEST, FOLDER, checkpoint_name, list_checkpoints
from d2v.values import PositiveFloat, PositiveInt, PositiveSteps, Range, buildable

log = logging.getLogger(__name__)


class UnknownMetric(UserError, RuntimeError):
    """The monitored metric is never logged."""


@buildable
class CheckpointEvery(Checkpoint):
    """Writes ``checkpoints/step-00001000.ckpt``, and keeps the newest and the best.

    A stopped run (:class:`~d2v.lit.callbacks.stop.StopWhenTold`) is saved like one that has ended.

    With ``monitor``, a step with a metric among the best so far is saved, too, and kept until it no longer is among
    them; ``best.ckpt`` is a link to the best of all. Every checkpoint lists the best ones. Rank 0's metric counts, but
    all ranks must log it. A callback that logs later than at the first logged step lists its metrics in its attribute
    ``metrics``. If a callback has ``writes_best`` (as in fine-tuning), it owns ``best.ckpt``.

    Args:
        run_dir: folder of the run; checkpoints are in its folder ``checkpoints``.
        every_n_steps: optimizer steps between two checkpoints.
        every_n_minutes: also save when so many minutes have passed since the last one; None for never.
        keep: number of newest checkpoints to keep; -1 for all.
        monitor: metric that ranks checkpoints, such as "probe/knn"; None for none.
        mode: "max" if higher is better, "min" if lower is.
        keep_best: number of best checkpoints to keep beside the newest.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        run_dir: str | Path,
        every_n_steps: PositiveSteps = 1000,
        every_n_minutes: PositiveFloat | None = 30.0,
        keep: Annotated[int, Range(-1, 10**9)] = 2,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        keep_best: PositiveInt = 1,
    ) -> None:
        super().__init__()
        if keep == 0:
            raise ValueError("keep=0: choose -1 (all) or at least 1")
        self.dirpath = Path(run_dir) / FOLDER
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.monitor, self.mode, self.keep_best = monitor, mode, keep_best
        self.best: list[tuple[float, int]] = []  # (metric, step), best first; the same on all ranks
        self._best_by: tuple[str | None, str] = (monitor, mode)
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._monitor_is_known = monitor is None

    def state_dict(self) -> dict[str, Any]:
        """Return the best checkpoints and their metric."""
        return {"monitor": self._best_by[0], "mode": self._best_by[1], "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best checkpoints, unless another metric is monitored now; without one they are kept."""
        best, by, mode = (state_dict[key] for key in ("best", "monitor", "mode"))
        if self.monitor is None:
            self.best, self._best_by = [(value, step) for value, step in best], (by, mode)
        elif (by, mode) == (self.monitor, self.mode):
            self.best = [(value, step) for value, step in best][: self.keep_best]
        elif best:
            log.warning("the checkpoints that were best by %s (%s) are no longer kept for it", by, mode)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete old checkpoints; note that a resumed step is already saved."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self._set_aside_later_than(trainer.global_step)
        there = [(value, step) for value, step in self.best if self._path(step).is_file()]
        self.best = trainer.strategy.broadcast(there)
        elsewhere = any(getattr(callback, "writes_best", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.is_global_zero and not self.best and not elsewhere:
            with suppress(OSError):  # of a disk that is gone; saving says so
                (self.dirpath / BEST).unlink(missing_ok=True)  # to a lost checkpoint, or by another metric

    def _set_aside_later_than(self, step: int) -> None:
        """Rename later checkpoints, because a run that went back must not be resumed from them."""
        for path in list_checkpoints(self.dirpath):
            if path.name > checkpoint_name(step):
                log.info("%s is of a later step than the resumed one: renamed to %s.left", path, path.name)
                path.rename(path.with_name(f"{path.name}.left"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due, only between optimizer steps, because gradients are not saved."""
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        minutes = (time.monotonic() - self._saved_at) / 60
        late = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        (overdue,) = agree(trainer, batch_idx, (late,))
        best = self._best_with_this_step(trainer, pl_module, batch_idx)
        if step % self.every_n_steps == 0 or overdue or best != self.best:
            self._save(trainer, best)

    def _best_with_this_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int
    ) -> list[tuple[float, int]]:
        """Return the best checkpoints so far, with the last step if it is one of them."""
        self._check_monitor(trainer, batch_idx)
        assert isinstance(pl_module, TrainingModule)
        if self.monitor is None or not pl_module.has_just_logged(self.monitor):
            return self.best
        value: float = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        if math.isnan(value):
            return self.best
        sign = 1 if self.mode == "min" else -1
        return sorted([*self.best, (value, trainer.global_step)], key=lambda best: sign * best[0])[: self.keep_best]

    def _check_monitor(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Raise UnknownMetric if the monitored metric is unknown; called once, after the first logged step."""
        if self._monitor_is_known or not is_logged_step(trainer, batch_idx):
            return
        later = {name for callback in trainer.callbacks for name in getattr(callback, "metrics", ())}  # type: ignore[attr-defined]
        known = sorted(later | trainer.callback_metrics.keys())
        if self.monitor not in known:
            raise UnknownMetric(
                f"monitor={self.monitor}: no such metric is logged; choose one of "
                f"{', '.join(known)}, or null (probe/knn comes with callbacks=probe)"
            )
        self._monitor_is_known = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, unless it is saved already.

        Raises:
            NotSaved: the checkpoint could not be written.
        """
        error = self._save(trainer, self.best)
        if error is not None:
            raise NotSaved(
                f"the last checkpoint, step {trainer.global_step}, could not be written to {self.dirpath} ({error}): "
                "make room there; the same command with resume=auto then goes on from the one before"
            )

    def _path(self, step: int) -> Path:
        return self.dirpath / checkpoint_name(step)

    def _save(self, trainer: L.Trainer, best: list[tuple[float, int]]) -> OSError | None:
        if trainer.global_step == self._saved_step:
            return None
        before, self.best = self.best, best  # now, because the checkpoint must hold it
        keep = [self._path(step) for _, step in [*before, *best]]
        error = save(trainer, self._path(trainer.global_step), keep=keep)
        if error is not None:
            self.best = before
            return error  # logged; older ones stay, and the next save may succeed
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self._tidy()
        return None

    def _tidy(self) -> None:
        """Link the best; only then delete checkpoints that are neither among the newest nor the best."""
        best = [self._path(step) for _, step in self.best]
        if best:
            point(self.dirpath / BEST, best[0])
        if self.keep > 0:
            for path in list_checkpoints(self.dirpath)[self.keep :]:
                if path not in best:
                    path.unlink()
