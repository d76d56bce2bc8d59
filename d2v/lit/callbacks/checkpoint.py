"""Saving: every so often, at the end, and when asked to stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from d2v.interop.native import list_checkpoints
from d2v.lit.checkpoint_io import NotSaved, save
from d2v.lit.steps import ends_step

log = logging.getLogger(__name__)


_REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # what Slurm is asked to send ahead of the time limit
_AGREE_EVERY = 10  # optimizer steps: asking the other ranks takes the time of waiting for the device


def _agree(trainer: L.Trainer, mine: tuple[bool, ...]) -> list[bool]:
    """Ranks have clocks and signals of their own, and saving is something they do together: one says, all do."""
    if trainer.world_size == 1:
        return list(mine)
    if trainer.global_step % _AGREE_EVERY:
        return [False] * len(mine)
    votes = torch.tensor(mine, dtype=torch.float32, device=trainer.strategy.root_device)
    return [vote > 0 for vote in trainer.strategy.reduce(votes, reduce_op="sum").tolist()]


class CheckpointEvery(Checkpoint):
    """Writes ``checkpoints/step-00001000.ckpt``, keeps the newest few, and stops cleanly when told to.

    SIGTERM or the first Ctrl-C ends the run after the optimizer step under way, with a checkpoint; a second Ctrl-C
    ends it at once. In a Slurm job SIGUSR1 and SIGUSR2 do the same and mean that the job is to be requeued. Several
    processes agree every ten steps.

    Args:
        dirpath: folder of the checkpoints.
        every_n_steps: optimizer steps between two.
        every_n_minutes: also save when this many minutes have passed since the last; None for never.
        keep: how many to keep, newest first; -1 for all.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, dirpath: str | Path, every_n_steps: int = 1000, every_n_minutes: float | None = 30.0, keep: int = 2
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint.every_n_steps={every_n_steps}: must be at least 1")
        if keep == 0 or keep < -1:
            raise ValueError(f"callbacks.checkpoint.keep={keep}: choose -1 (all) or at least 1")
        self.dirpath = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.stop_signal: int | None = None
        self.requeue = False  # whether any rank was told to have the job requeued; the same on all
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGTERM and Ctrl-C; a resumed run's checkpoint needs no second copy."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self._set_aside_later_than(trainer.global_step)
        for number in (signal.SIGTERM, signal.SIGINT, *(_REQUEUE if "SLURM_JOB_ID" in os.environ else ())):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def _set_aside_later_than(self, step: int) -> None:
        """A run that went back to an earlier checkpoint must not be resumed from the future it left."""
        for path in list_checkpoints(self.dirpath):
            if path.stem > f"step-{step:08d}":
                log.info("%s is of a future this run has left: renamed to %s.left", path, path.name)
                path.rename(path.with_name(f"{path.name}.left"))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_signal = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; stop if told to. Only between optimizer steps: gradients are not saved."""
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        minutes = (time.monotonic() - self._saved_at) / 60
        overdue = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        overdue, stop, requeue = _agree(trainer, (overdue, self.stop_signal is not None, self.stop_signal in _REQUEUE))
        self.requeue |= requeue
        if step % self.every_n_steps == 0 or overdue:
            self._save(trainer)
        if stop:
            log.info("told to stop: stopping after step %d", step)
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what has not been saved yet, and give the signals back.

        Raises:
            NotSaved: it could not be written.
        """
        error = self._save(trainer)
        self._restore_handlers()
        if error is not None:
            raise NotSaved(
                f"the last checkpoint, step {trainer.global_step}, could not be written to {self.dirpath} ({error}): "
                "make room there; the same command with resume=auto then goes on from the one before"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; a run that failed inside a step is not saved."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def _save(self, trainer: L.Trainer) -> OSError | None:
        if trainer.global_step == self._saved_step:
            return None
        error = save(trainer, self.dirpath / f"step-{trainer.global_step:08d}.ckpt")
        if error is not None:
            return error  # logged; the older ones stay, and the next time may be better
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and self.keep > 0:
            for path in list_checkpoints(self.dirpath)[self.keep :]:
                path.unlink()
        return None
