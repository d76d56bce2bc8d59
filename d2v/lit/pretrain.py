"""Pretraining under Lightning: one optimizer step, then one move of the teacher, data2vec (arXiv:2202.03555)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from d2v.lit.module import TrainingModule
from d2v.models.masked import MaskedModel
from d2v.types import Batch


class PretrainModule(TrainingModule):
    """Trains a :class:`MaskedModel`.

    Args:
        model: student, maybe a teacher, and what predicts.
        optim: as in :class:`TrainingModule`, like ``schedule``, ``seed`` and ``config``.
        schedule: factor on the peak learning rate.
        ema: the teacher's decay by optimizer step (1 after the first).
        seed: of the randomness on the device.
        config: rebuilds the model.
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
    ) -> None:
        super().__init__(model, optim, schedule, seed, config)
        self.ema = ema

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss of a micro-batch; gradients averaged over ranks and micro-batches are those of the global batch."""
        self._seed_step(batch_idx)
        out = self.forward_pass(batch)
        loss = out.loss_sum * self.trainer.world_size / self._mean_count(out.count, batch)
        if self.should_log:
            self._log_loss(loss, batch_idx)
            seen = {f"train/loss_{name}": value / out.count for name, value in out.terms.items()}
            seen |= {f"train/{name}": value for name, value in out.logged.items()}
            self.log_dict(seen, sync_dist=True)
        return {"loss": loss, "watched": out.watched}

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
        """One optimizer step and the teacher's update after it: here and nowhere else."""
        step = self.trainer.global_step + 1  # Lightning counts this step once super() returns
        log = self.should_log
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        decay = self.ema(step)
        self.model.update_teacher(decay)
        if log and "teacher" in self.model.networks:
            self.log("train/ema_decay", decay)
