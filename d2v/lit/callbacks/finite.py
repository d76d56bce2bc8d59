"""Count steps without a finite gradient, which change no weight, and end a run after too many in a row."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2v.errors import UserError
from d2v.lit.module import TrainingModule
from d2v.lit.steps import ends_step, is_logged
from d2v.runs.metrics import SKIPPED_STEPS
from d2v.values import PositiveInt, PositiveSteps, buildable

log = logging.getLogger(__name__)


class NotFinite(UserError, RuntimeError):
    """Too many steps in a row had no finite gradient; the message gives advice."""

    state = "diverged"


@buildable
class SkippedSteps(L.Callback):
    """Writes the samples of skipped steps to ``skipped_steps_RANK.jsonl``, and stops a run with too many in a row.

    :class:`TrainingModule` makes the optimizer skip such a step on the device. This callback reads the flags every few
    steps, so that no step waits for them. The learning rate schedule and the teacher continue.

    Args:
        run_dir: folder of the files; each process writes the samples it had.
        check_every_n_steps: optimizer steps between two checks.
        max_in_a_row: number of skipped steps in a row that ends the run.
    """

    def __init__(
        self, run_dir: str | Path, check_every_n_steps: PositiveSteps = 10, max_in_a_row: PositiveInt = 20
    ) -> None:
        self.run_dir = Path(run_dir)
        self.check_every_n_steps = check_every_n_steps
        self.max_in_a_row = max_in_a_row
        self.num_skipped = 0
        self.in_a_row = 0
        self._sample_ids: list[Tensor] = []
        self._steps: list[tuple[int, list[Tensor], Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, with which a resumed run continues."""
        return {"num_skipped": self.num_skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self.num_skipped, self.in_a_row = state_dict["num_skipped"], state_dict["in_a_row"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the step's samples; check every ``check_every_n_steps``.

        Raises:
            NotFinite: too many steps in a row were skipped; raised on all ranks together.
        """
        self._sample_ids.append(batch.sample_ids)
        if not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, TrainingModule)
        self._steps.append((trainer.global_step, self._sample_ids, pl_module.skipped))
        self._sample_ids = []
        if trainer.global_step % self.check_every_n_steps == 0:
            self._look(trainer)
        if self.num_skipped and is_logged(trainer, trainer.global_step):
            pl_module.log("train/skipped_steps", float(self.num_skipped))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the remaining steps."""
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        steps, self._steps = self._steps, []
        skipped = torch.stack([flag for *_, flag in steps]).tolist() if steps else []
        for (step, sample_ids, _), flag in zip(steps, skipped, strict=True):
            self.in_a_row = self.in_a_row + 1 if flag else 0
            if not flag:
                continue
            self.num_skipped += 1
            ids = torch.cat(sample_ids).tolist()
            path = self.run_dir / SKIPPED_STEPS.format(trainer.global_rank)
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "sample_ids": ids}) + "\n")
            log.warning(
                "step %d skipped: its gradient is not finite (%d so far; samples: %s)", step, self.num_skipped, path
            )
            if self.in_a_row >= self.max_in_a_row:
                raise NotFinite(
                    f"the gradient was not finite in the last {self.in_a_row} steps, up to step {step} "
                    f"(max_in_a_row={self.max_in_a_row}); their samples are in {path}. What helps: "
                    "a lower lr=..., gradient_clip_val=4, precision=32-true, and a look at those "
                    "samples; then resume=auto goes on from the last checkpoint"
                )
