"""Is the representation alive? Measured on the student's own features, and a stop with advice when it is not.

The reference's two logged deviations cannot tell: its targets are normalised, so they keep their spread while every
image gets the same features. What dies in a collapse is how much different samples' features differ.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2v.eval.health import effective_rank, relative_spread
from d2v.lit.steps import is_logged_step

log = logging.getLogger(__name__)


class Collapse(RuntimeError):
    """The student gives (almost) the same features to every sample; the message says what to do."""


class HealthMonitor(L.Callback):
    """Logs ``train/effective_rank`` (RankMe) and ``train/relative_spread`` of the student's features.

    Measured over the samples of the last optimizer steps, one mean-pooled view of each; averaged over ranks.

    Args:
        window: samples to measure over, as far as they have been seen.
    """

    def __init__(self, window: int = 512) -> None:
        self.window = window
        self._features: deque[Tensor] = deque()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's features; measure when metrics are logged."""
        self._features.append(outputs["features"])
        while sum(map(len, self._features)) - len(self._features[0]) >= self.window:
            self._features.popleft()
        if is_logged_step(trainer, batch_idx):
            features = torch.cat(list(self._features))
            pl_module.log("train/effective_rank", effective_rank(features), sync_dist=True)
            pl_module.log("train/relative_spread", relative_spread(features), sync_dist=True)


class CollapseGuard(L.Callback):
    """Stops a run whose features have collapsed, with advice.

    Judged on ``train/relative_spread``, which a fresh encoder has from its inputs (about .5 for images) and a healthy
    run keeps: a collapsed one falls towards 0, whatever the loss does.

    Args:
        min_spread: the run is stopped when the spread stays below this share of what it was at first ...
        patience: ... for this many logged steps in a row.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, min_spread: float = 0.2, patience: int = 3) -> None:
        if not 0 < min_spread < 1:
            raise ValueError(f"callbacks.collapse_guard.min_spread={min_spread}: must lie between 0 and 1")
        if patience < 1:
            raise ValueError(f"callbacks.collapse_guard.patience={patience}: must be at least 1")
        self.min_spread = min_spread
        self.patience = patience
        self.first: float | None = None
        self.num_below = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run judges by."""
        return {"first": self.first, "num_below": self.num_below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.first, self.num_below = state_dict["first"], state_dict["num_below"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge every newly logged spread.

        Raises:
            Collapse: on every rank at once, since the spread is averaged over them.
        """
        if not is_logged_step(trainer, batch_idx):
            return
        spread = float(trainer.callback_metrics["train/relative_spread"])
        if self.first is None:
            self.first = spread
        # not >=: a NaN is no spread either
        self.num_below = 0 if spread >= self.min_spread * self.first else self.num_below + 1
        if self.num_below >= self.patience:
            raise Collapse(
                f"the features have collapsed at step {trainer.global_step}: different samples' features differ by "
                f"{spread:.3g} of their size, {self.first:.3g} at the start (train/relative_spread, below "
                f"callbacks.collapse_guard.min_spread={self.min_spread} of it at {self.patience} logged steps in a "
                "row). What helps, in this order: a lower optim.lr; a longer schedule.warmup_steps; "
                "trainer.gradient_clip_val=4; a slower teacher (ema.decay_start, ema.decay_end closer to 1); instance "
                "norm in model.layer_norms. To go on regardless: '~callbacks.collapse_guard'."
            )
