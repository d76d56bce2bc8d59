"""Relation of micro-batches and optimizer steps: which micro-batch ends a step, which steps are logged."""

from __future__ import annotations

import lightning as L


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Return whether step ``step`` (from 1) is logged: the first, every ``log_every_n_steps``-th and the last."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's logger connector
    return step == 1 or step % every == 0 or step == trainer.max_steps


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether micro-batch ``batch_idx`` was the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logged_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return, in ``on_train_batch_end``, whether this micro-batch ended an optimizer step that is logged."""
    return ends_step(trainer, batch_idx) and is_logged(trainer, trainer.global_step)
