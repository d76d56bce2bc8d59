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

    Measured over the samples of the last optimizer steps, one mean-pooled view of each: by rank 0's share.

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
            pl_module.log("train/effective_rank", effective_rank(features))
            pl_module.log("train/relative_spread", relative_spread(features))


class CollapseGuard(L.Callback):
    """Stops a run whose features have collapsed, with advice.

    Args:
        min_spread: the run is stopped when ``train/relative_spread`` stays below this share of its highest value so
            far ...
        patience: ... for this many logged steps in a row.
    """

    def __init__(self, min_spread: float = 0.1, patience: int = 3) -> None:
        self.min_spread = min_spread
        self.patience = patience
        self.highest = 0.0
        self.below = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"highest": self.highest, "below": self.below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.highest, self.below = state_dict["highest"], state_dict["below"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge each newly logged spread."""
