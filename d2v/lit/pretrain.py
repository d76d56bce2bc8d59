"""Pretraining under Lightning: one optimizer step, then one move of the teacher, data2vec 2.0 (arXiv:2212.07525)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from d2v.lit.steps import ends_step, is_logged
from d2v.models.data2vec2 import Data2Vec2
from d2v.types import Batch
from d2v.version import __version__


class PretrainModule(L.LightningModule):
    """Trains a :class:`Data2Vec2`.

    Args:
        model: student, teacher and decoders.
        optim: makes the optimizer from (name, parameter) pairs; its groups' ``lr`` is the peak.
        schedule: factor on the peak learning rate by optimizer step (0-based).
        ema: the teacher's decay by optimizer step (1 after the first).
        seed: with the step, the source of all randomness on the device (dropout, decoder noise), so that a resumed
            run draws what the uninterrupted one would have.
        config: plain containers that rebuild the model; stored in every checkpoint.
    """

    def __init__(
        self,
        model: Data2Vec2,
        optim: Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer],
        schedule: Callable[[int], float],
        ema: Callable[[int], float],
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.schedule = schedule
        self.ema = ema
        self.seed = seed
        self.config = config or {}
        self._step_loss: Tensor | float = 0.0
        self._logged: set[str] = set()

    def configure_optimizers(self) -> Any:
        """AdamW or whatever ``optim`` makes, with its learning rate stepped every optimizer step."""
        optimizer = self.optim((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of a micro-batch; gradients averaged over ranks and micro-batches are those of the global batch."""
        self._seed_step(batch_idx)
        out = self.model(batch)
        loss = out.loss_sum * self.trainer.world_size / self._mean_count(out.count, batch)
        if self.should_log:
            mask = batch.mask
            assert mask is not None
            micro_batch = batch_idx % self.trainer.accumulate_grad_batches
            self._step_loss = loss.detach() + (self._step_loss if micro_batch else 0.0)
            self.log("train/loss", self._step_loss / (micro_batch + 1), sync_dist=True)
            self.log_dict({f"train/loss_{name}": value / out.count for name, value in out.terms.items()})
            self.log("train/masked_fraction", mask.ids_mask.shape[1] / mask.mask.shape[1])
            self.log_dict({"train/target_std": out.target_std, "train/pred_std": out.pred_std})
        return {"loss": loss, "features": out.features, "local_features": out.local_features}

    def _mean_count(self, count: Tensor, batch: Batch) -> Tensor:
        """The masked tokens that ``world_size`` such micro-batches have on average, to divide the loss by."""
        if batch.step_size is None:
            return self.trainer.strategy.reduce(count.clone(), reduce_op="sum")
        # Every sample of the step masks equally many tokens, so no other rank need be asked.
        return count * batch.step_size / (len(batch.sample_ids) * self.trainer.accumulate_grad_batches)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, but loggers get a step's metrics once, at its end, under its own number (the first is 1)."""
        self._logged.add(name)
        super().log(name, value, *args, **{**kwargs, "logger": False})

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After all callbacks have logged: hand the step's metrics to the loggers."""
        if ends_step(self.trainer, batch_idx):
            self._hand_over_metrics()

    def _hand_over_metrics(self) -> None:
        if not self._logged:
            return
        known = self.trainer.callback_metrics
        metrics = {name: float(known[name]) for name in self._logged}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)
            logger.save()
        self._logged.clear()

    @property
    def should_log(self) -> bool:
        """Whether the metrics of the optimizer step under way are logged."""
        return is_logged(self.trainer, self.trainer.global_step + 1)

    def _seed_step(self, batch_idx: int) -> None:
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        entropy = (self.seed, self.trainer.global_step, micro_batch, self.trainer.global_rank)
        torch.manual_seed(int.from_bytes(_digest(entropy)[:8], "little") >> 1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm, if the trainer says so, and log the norm before clipping."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"), foreach=True)
        if self.should_log:
            self.log_dict({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]})

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
        if log:
            self.log("train/ema_decay", decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model: plain containers only, so that loading executes nothing."""
        self._hand_over_metrics()  # first, or a run killed in between would resume after a step it never logged
        checkpoint["d2v"] = {"version": __version__, "config": self.config}


def _digest(values: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()
