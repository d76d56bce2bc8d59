"""Pretraining under Lightning: one optimizer step, then one update of the teacher, data2vec (arXiv:2202.03555)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from d2v.lit.module import TrainingModule
from d2v.models.masked import MaskedModel
from d2v.types import Batch, LossOutput


@dataclass(frozen=True)
class Measured:
    """An optimizer step's measures of one modality.

    Attributes:
        step: its number.
        losses: of the micro-batches of that modality, detached.
        terms: shares of the loss of the last one, as sums over ``count``.
        count: what the sums are divided by.
        logged: scalars of the last one.
    """

    step: int
    losses: tuple[Tensor, ...]
    terms: Mapping[str, Tensor]
    count: Tensor
    logged: Mapping[str, Tensor]


class PretrainModule(TrainingModule):
    """Trains a :class:`MaskedModel`.

    Where a model has several modalities, what it measures is logged and watched for each, as ``<name>/<modality>``: the
    last step of each since the step that was logged before. Checkpoints do not hold these, so the first row after a
    resume may lack a modality.

    Args:
        model: student, predictors and, for some algorithms, a teacher.
        optim: as in :class:`TrainingModule`, like ``schedule``, ``seed`` and ``config``.
        schedule: factor on the peak learning rate by optimizer step.
        ema: decay of the teacher by optimizer step (1 at the first update).
        seed: seed of the randomness on the device.
        config: configuration that rebuilds the model.
        curriculum: share of the loss on the teacher's targets by optimizer step (0 at the first); the rest is on input
            values. While it is 0, the teacher waits, and then starts as a copy of the student. None for models with one
            kind of target.
    """

    model: MaskedModel

    def __init__(
        self,
        model: MaskedModel,
        optim: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int], float],
        ema: Callable[[int], float],
        seed: int = 0,
        config: dict[str, Any] | None = None,
        curriculum: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(model, optim, schedule, seed, config)
        self.ema = ema
        self.curriculum = curriculum
        self._measured: dict[str, Measured] = {}  # by modality, since a step was logged

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss of a micro-batch; gradients averaged over ranks and micro-batches are those of the global batch."""
        self._seed_step(batch_idx)
        self._follow_curriculum()
        out = self.forward_pass(batch)
        loss = out.loss_sum * self.trainer.world_size / self._mean_count(out.count, batch)
        self._measure(batch.modality, loss, out)
        if self.should_log:
            self._log_loss(loss, batch_idx)
            self._log_measured()
        end = self._ending(batch.modality)
        return {"loss": loss, "watched": {f"{name}{end}": features for name, features in out.watched.items()}}

    def _follow_curriculum(self) -> None:
        """Weigh the losses of this step; at the first one that needs the teacher, make it the student's copy."""
        if self.curriculum is None:
            return
        step = self.trainer.global_step
        share = self.curriculum(step)
        if share > 0 and step > 0 and self.curriculum(step - 1) == 0:
            self.model.update_teacher(0.0)
        self.model.set_latent_share(share)

    def _ending(self, modality: str) -> str:
        """Return the suffix of the names of a modality's metrics."""
        return f"/{modality}" if len(self.model.student.frontends) > 1 else ""

    def _measure(self, modality: str, loss: Tensor, out: LossOutput) -> None:
        step, before = self.trainer.global_step, self._measured.get(modality)
        losses = before.losses if before is not None and before.step == step else ()
        self._measured[modality] = Measured(step, (*losses, loss.detach()), out.terms, out.count, out.logged)

    def _log_measured(self) -> None:
        for modality, measured in sorted(self._measured.items()):  # in one order on all ranks
            end = self._ending(modality)
            seen = {f"train/loss_{name}{end}": value / measured.count for name, value in measured.terms.items()}
            seen |= {f"train/{name}{end}": value for name, value in measured.logged.items()}
            if end:
                seen[f"train/loss{end}"] = torch.stack(measured.losses).mean()
            self.log_dict(seen, sync_dist=True)

    def _mean_count(self, count: Tensor, batch: Batch) -> Tensor:
        """The masked tokens that ``world_size`` such micro-batches have on average, to divide the loss by."""
        if batch.step_size is None:
            return self.trainer.strategy.reduce(count.clone(), reduce_op="sum")
        # Every sample of the step masks equally many tokens, so no other rank need be asked.
        return count * batch.step_size / (len(batch.sample_ids) * self.trainer.accumulate_grad_batches)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run an optimizer step and update the teacher after it; the teacher is updated nowhere else."""
        step = self.trainer.global_step + 1  # Lightning counts this step once super() returns
        log = self.should_log
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        decay = self.ema(step)
        if self.curriculum is None or self.curriculum(step - 1) > 0:
            self.model.update_teacher(decay)
        if not log:
            return
        self._measured.clear()
        if "teacher" in self.model.networks:
            self.log("train/ema_decay", decay)
