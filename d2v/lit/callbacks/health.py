"""Collapse guard: measures the student's own features, and stops a run with advice when they have collapsed.

The reference's two logged deviations cannot tell: its targets are normalised, so they keep their spread while every
image gets the same features. What dies in a collapse is how much different samples' features differ.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2v.errors import UserError
from d2v.eval.health import effective_rank, relative_spread
from d2v.lit.steps import ends_step, is_logged
from d2v.values import OpenFraction, PositiveInt, PositiveSteps, WindowSize, buildable


class Collapse(UserError, RuntimeError):
    """The student gives (almost) the same features to every sample; the message says what to do."""

    state = "diverged"


_SUBJECTS = {
    "features": ("the features have", "different samples' features", "min_spread"),
    "frontend": ("the frontend has", "its features of different tokens", "min_frontend_spread"),
}


@buildable
class HealthMonitor(L.Callback):
    """Logs ``train/{effective_rank,relative_spread}`` and stops a run that has collapsed.

    Measured over the samples of the last optimizer steps, one mean-pooled view of each, and averaged over ranks. A
    fresh encoder has a spread from its inputs (about .5 for images) and a healthy run keeps it; a collapsed one falls
    to almost 0, whatever its loss, its targets and its predictions do. A fresh encoder of speech gives almost the same
    features to every clip, so what counts is the highest spread so far, not the first. ``train/frontend_{rank,spread}``
    say the same of the frontend's local features, over tokens of the last step: a convolutional one can die on its own.

    Args:
        window: samples to measure over, as far as they have been seen.
        check_every_n_steps: optimizer steps between two looks at the spreads.
        min_spread: the run is stopped when the features' spread stays below this share of its highest so far; None for
            never.
        min_frontend_spread: the same for the frontend, which in a healthy run may dip to a fifth while it warms up.
        patience: for this many looks in a row.
    """

    def __init__(
        self,
        window: WindowSize = 512,
        check_every_n_steps: PositiveSteps = 10,
        min_spread: OpenFraction | None = 0.2,
        min_frontend_spread: OpenFraction | None = 0.1,
        patience: PositiveInt = 3,
    ) -> None:
        self.window = window
        self.check_every_n_steps = check_every_n_steps
        self.limits = {"features": min_spread, "frontend": min_frontend_spread}
        self.patience = patience
        self._features: deque[Tensor] = deque()
        self._num_pending = 0  # of them, micro-batches of an optimizer step that has not ended
        self._best_spread: dict[str, float] = {}
        self._num_below: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """State by which a resumed run judges: finished optimizer steps."""
        num_finished = len(self._features) - self._num_pending
        return {
            "best_spread": dict(self._best_spread),
            "num_below": dict(self._num_below),
            "features": [features.cpu() for features in itertools.islice(self._features, num_finished)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best_spread, self._num_below = dict(state_dict["best_spread"]), dict(state_dict["num_below"])
        self._features = deque(state_dict["features"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's features; look at them when it is time.

        Raises:
            Collapse: on every rank at once.
        """
        self._features.append(outputs["features"])
        if self._features[0].device != self._features[-1].device:  # resumed
            self._features = deque(features.to(self._features[-1].device) for features in self._features)
        self._num_pending += 1
        if not ends_step(trainer, batch_idx):
            return
        self._num_pending = 0
        while sum(map(len, self._features)) - len(self._features[0]) >= self.window:
            self._features.popleft()
        step = trainer.global_step
        logged = is_logged(trainer, step)
        if not logged and step % self.check_every_n_steps:
            return
        measured = (
            ("features", "effective_rank", "relative_spread", torch.cat(list(self._features))),
            ("frontend", "frontend_rank", "frontend_spread", outputs["local_features"]),
        )
        for part, rank_name, spread_name, features in measured:
            finite = features[features.isfinite().all(dim=1)]  # those of a skipped step say nothing
            features = finite if len(finite) else features
            spread = trainer.strategy.reduce(relative_spread(features), reduce_op="mean")
            if logged:
                pl_module.log(f"train/{rank_name}", effective_rank(features), sync_dist=True)
                pl_module.log(f"train/{spread_name}", spread)
            self._judge(part, spread_name, float(spread), step)

    def _judge(self, part: str, spread_name: str, spread: float, step: int) -> None:
        limit = self.limits[part]
        if limit is None:
            return
        best = max(self._best_spread.get(part, 0.0), spread if math.isfinite(spread) else 0.0)
        self._best_spread[part] = best
        alive = spread >= limit * best  # false for NaN
        self._num_below[part] = 0 if alive else self._num_below.get(part, 0) + 1
        if self._num_below[part] >= self.patience:
            subject, what, key = _SUBJECTS[part]
            raise Collapse(
                f"{subject} collapsed at step {step}: {what} differ by {spread:.3g} of "
                f"their size, at best by {best:.3g} (train/{spread_name}; limit: "
                f"callbacks.health.{key}={limit} of the best). What helps, in this order: a lower "
                "optim.lr; a longer schedule.warmup_steps; trainer.gradient_clip_val=4; a slower teacher "
                "(ema.decay_start and ema.decay_end closer to 1); instance norm in model.layer_norms. "
                f"callbacks.health.{key}=null goes on regardless."
            )
