"""Fine-tuning under Lightning: a task's loss on labelled batches, whatever the modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from d2v.data.batching import BatchSplit
from d2v.data.loading import Workers
from d2v.data.protocol import BatchLoader, FinetuneData
from d2v.data.samplers import StepPlan
from d2v.data.source import Sample
from d2v.lit.data import ResumableDataModule
from d2v.lit.module import TrainingModule
from d2v.lit.strategies import FullyShardedStrategy, shard
from d2v.models.heads import FinetunedModel
from d2v.objective.teacher import make_teacher, update_teacher
from d2v.tasks.base import Task
from d2v.types import Batch


class FinetuneModule(TrainingModule):
    """Trains a :class:`FinetunedModel`.

    Args:
        model: encoder and head.
        task: what its outputs mean.
        optim: makes the optimizer of a model's parameters; its groups' ``lr`` is the peak.
        schedule: factor on the peak learning rate by optimizer step (0-based).
        freeze_steps: optimizer steps at the start in which only the head is trained.
        ema_decay: of a moving average of the weights, which is then what is scored and kept; None for none.
        seed: with the step, the source of all randomness on the device.
        config: plain containers that rebuild the model; stored in every checkpoint.
    """

    def __init__(
        self,
        model: FinetunedModel,
        task: Task,
        optim: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int], float],
        freeze_steps: int = 0,
        ema_decay: float | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, optim, schedule, seed, config)
        self.model: FinetunedModel
        self.task = task
        self.freeze_steps = freeze_steps
        self.ema_decay = ema_decay
        self.average = None if ema_decay is None else make_teacher(model)

    @property
    def scored(self) -> FinetunedModel:
        """The model that is scored and kept: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average

    def configure_model(self) -> None:
        """Spread the average over devices as the model is, under FSDP."""
        super().configure_model()
        if self.average is not None and isinstance(self.trainer.strategy, FullyShardedStrategy):
            shard(self.average, self.trainer.strategy.device_mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of a micro-batch; gradients averaged over ranks and micro-batches are those of the global batch."""
        self._seed_step(batch_idx)
        outputs = self.forward_pass(batch, train_encoder=self.trainer.global_step >= self.freeze_steps)
        loss_output = self.task.loss(outputs, batch)
        world_size, accumulate = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if batch.step_size is None:  # every micro-batch holds equally much
            loss = (
                loss_output.sum * world_size / self.trainer.strategy.reduce(loss_output.count.clone(), reduce_op="sum")
            )
        else:
            loss = loss_output.sum * world_size * accumulate / batch.step_size
        if self.should_log:
            self._log_loss(loss, batch_idx)
        return {"loss": loss}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One optimizer step, and the average's move after it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None and self.ema_decay is not None:
            # As in TensorFlow's averages: a young run forgets its start sooner.
            step = self.trainer.global_step
            update_teacher(self.average, self.model, min(self.ema_decay, (1 + step) / (10 + step)))


class FinetuneDataModule(ResumableDataModule):
    """Feeds a run with labelled batches.

    Args:
        data: what to train on.
        split: how the global batch is spread.
        num_workers: processes that load; 0 loads in the training process.
        seed: decides order and augmentation.
    """

    def __init__(self, data: FinetuneData, split: BatchSplit, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(split, num_workers)
        self.data = data
        self.seed = seed

    def batches(self, plan: StepPlan, workers: Workers) -> BatchLoader:
        """Training batches of this rank."""
        return self.data.loader(self.seed, self.split, plan, workers)

    def score_loader(self, rank: int = 0, world_size: int = 1) -> DataLoader[Sample]:
        """Batches of the set that chooses the best checkpoint, or a process's share of them."""
        return self.data.eval_loader("val", self.num_workers, rank, world_size)
