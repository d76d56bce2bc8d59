"""Collapse guard: monitors the student's features, and stops a run with advice when they have collapsed.

The standard deviations that the reference logs do not show a collapse: targets are normalised, so they keep their
spread while every image gets the same features. A collapse shows in the spread of features between samples.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from d2v.errors import UserError
from d2v.eval.health import effective_rank, relative_spread
from d2v.lit.steps import ends_step, is_logged
from d2v.values import OpenFraction, PositiveInt, PositiveSteps, WindowSize, buildable


class Collapse(UserError, RuntimeError):
    """The student gives (almost) the same features to every sample; the message gives advice."""

    state = "diverged"


class Watched(NamedTuple):
    """Metrics of a kind of features, and the words for them in messages.

    Attributes:
        rank: name of the metric of rank.
        spread: name of the metric of spread.
        subject: subject that has collapsed, in the message.
        what: part that differs too little, in the message.
        limit: name of the monitor's argument with the limit.
        last_only: True to measure over the last micro-batch instead of the window.
    """

    rank: str
    spread: str
    subject: str
    what: str
    limit: str = "min_spread"
    last_only: bool = False


_WATCHED = {
    "features": Watched("effective_rank", "relative_spread", "the features have", "different samples' features"),
    "frontend": Watched(
        "frontend_rank",
        "frontend_spread",
        "the frontend has",
        "its features of different tokens",
        "min_frontend_spread",
        last_only=True,
    ),
}


def _watched(key: str) -> Watched:
    """Return the watch of a key, "<name>" or "<name>/<modality>"; one of another name is called as its metrics are."""
    name, _, modality = key.partition("/")
    known = _WATCHED.get(name) or Watched(f"{name}_rank", f"{name}_spread", f"{name} have", "different rows")
    if not modality:
        return known
    return known._replace(
        rank=f"{known.rank}/{modality}",
        spread=f"{known.spread}/{modality}",
        subject=f"of {modality}, {known.subject}",
    )


@buildable
class HealthMonitor(L.Callback):
    """Logs ``train/{effective_rank,relative_spread}`` and stops a run that has collapsed.

    Every key of ``LossOutput.watched`` has a window of its own: "features" and "frontend", or "<name>/<modality>" where
    a model has several modalities, with metrics that end in "/<modality>", too.

    Features are measured over the samples of the last optimizer steps, one mean-pooled view of each, and averaged over
    ranks. A fresh encoder has a spread from its inputs (about .5 for images) and a healthy run keeps it; a collapsed
    one falls to almost 0, whatever its loss, its targets and its predictions do. A fresh encoder of speech gives almost
    the same features to every clip, so what counts is the highest spread so far, not the first.
    ``train/frontend_{rank,spread}`` say the same of the frontend's local features, over tokens of the last step: a
    convolutional one can die on its own.

    Args:
        window: number of latest samples to measure over.
        check_every_n_steps: optimizer steps between two checks of the spreads.
        min_spread: stop when the spread of the features stays below this share of its maximum so far; None for never.
        min_frontend_spread: the same for the frontend, which in a healthy run may dip to a fifth while it warms up.
        patience: number of such checks in a row that stops the run.
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
        self.limits = {"min_spread": min_spread, "min_frontend_spread": min_frontend_spread}
        self.patience = patience
        self._windows: dict[str, deque[Tensor]] = {}
        self._num_pending: dict[str, int] = {}  # micro-batches of an optimizer step that has not ended
        self._unseen: set[str] = set()  # keys with features that came after the last look
        self._best_spread: dict[str, float] = {}
        self._num_below: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the finished optimizer steps, with which a resumed run continues."""
        return {
            "best_spread": dict(self._best_spread),
            "num_below": dict(self._num_below),
            "windows": {
                key: [features.cpu() for features in itertools.islice(window, len(window) - self._num_pending[key])]
                for key, window in self._windows.items()
            },
            "unseen": sorted(self._unseen),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._best_spread, self._num_below = dict(state_dict["best_spread"]), dict(state_dict["num_below"])
        self._windows = {key: deque(window) for key, window in state_dict["windows"].items() if window}
        self._num_pending = dict.fromkeys(self._windows, 0)
        self._unseen = set(state_dict["unseen"]) & self._windows.keys()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the batch's features; check them every ``check_every_n_steps``.

        Raises:
            Collapse: features have collapsed; raised on all ranks together.
        """
        for key, features in outputs["watched"].items():
            self._keep(key, features)
        if not ends_step(trainer, batch_idx):
            return
        for key, window in self._windows.items():
            if self._num_pending[key]:
                self._unseen.add(key)
            self._num_pending[key] = 0
            size = 1 if _watched(key).last_only else self.window
            while sum(map(len, window)) - len(window[0]) >= size:
                window.popleft()
        step = trainer.global_step
        logged = is_logged(trainer, step)
        if not logged and step % self.check_every_n_steps:
            return
        for key in [key for key in self._windows if key in self._unseen]:
            self._unseen.discard(key)
            watched, features = _watched(key), torch.cat(list(self._windows[key]))
            finite = features[features.isfinite().all(dim=1)]  # ignore those of a skipped step
            features = finite if len(finite) else features
            spread = trainer.strategy.reduce(relative_spread(features), reduce_op="mean")
            if logged:
                pl_module.log(f"train/{watched.rank}", effective_rank(features), sync_dist=True)
                pl_module.log(f"train/{watched.spread}", spread)
            self._judge(key, float(spread), step)

    def _keep(self, key: str, features: Tensor) -> None:
        window = self._windows.setdefault(key, deque())
        window.append(features)
        if window[0].device != features.device:  # resumed
            self._windows[key] = deque(kept.to(features.device) for kept in window)
        self._num_pending[key] = self._num_pending.get(key, 0) + 1

    def _judge(self, key: str, spread: float, step: int) -> None:
        watched = _watched(key)
        limit = self.limits[watched.limit]
        if limit is None:
            return
        best = max(self._best_spread.get(key, 0.0), spread if math.isfinite(spread) else 0.0)
        self._best_spread[key] = best
        alive = spread >= limit * best  # false for NaN
        self._num_below[key] = 0 if alive else self._num_below.get(key, 0) + 1
        if self._num_below[key] >= self.patience:
            raise Collapse(
                f"{watched.subject} collapsed at step {step}: {watched.what} differ by {spread:.3g} of "
                f"their size, at best by {best:.3g} (train/{watched.spread}; limit: "
                f"{watched.limit}={limit} of the best). What helps, in this order: a lower "
                "lr=...; a longer warmup_steps; gradient_clip_val=4; a slower teacher "
                "(decay_start and decay_end closer to 1); instance norm in layer_norms. "
                f"{watched.limit}=null goes on regardless."
            )
