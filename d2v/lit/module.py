"""Base class of pretraining and fine-tuning under Lightning: optimizer, seeds, logging by step, checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from d2v.lit.steps import ends_step, is_logged
from d2v.lit.strategies import FullyShardedStrategy, shard
from d2v.types import Batch
from d2v.version import __version__


class TrainingModule(L.LightningModule):
    """Trains a model; a subclass defines ``training_step``.

    A step without a finite gradient changes no weight (see :class:`~d2v.lit.callbacks.finite.SkippedSteps`).

    Args:
        model: model to train.
        optim: builds a fused optimizer for a model; the ``lr`` of its groups is the peak.
        schedule: factor on the peak learning rate by optimizer step (0-based).
        seed: seed, together with the step, of all randomness on the device (dropout, noise), so that a resumed run
            draws the same numbers as an uninterrupted one.
        config: plain containers that rebuild the model; stored in every checkpoint.

    Attributes:
        record: further plain containers for every checkpoint, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int], float],
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.schedule = schedule
        self.seed = seed
        self.config = config or {}
        self.record: dict[str, Any] = {}
        self.skipped = torch.tensor(False)
        self._settings: list[dict[str, Any]] = []  # of the optimizer's parameter groups, as configured
        self._compiled: Callable[..., Any] | None = None
        self._step_loss: Tensor | float = 0.0
        self._logged: set[str] = set()

    def compile_forward(self, **options: Any) -> None:
        """Compile the model's forward pass as one graph, for training steps only, because scoring has other shapes.

        The model and the names of its weights in checkpoints do not change.

        Args:
            options: options of ``torch.compile``.
        """
        # Clips and texts have many shapes; after a few, PyTorch compiles graphs for dynamic sizes, within bounds.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.optimize_ddp = False  # DDP would split the graph
        self._compiled = torch.compile(self.model.forward, fullgraph=True, **options)

    @property
    def forward_pass(self) -> Callable[..., Any]:
        """Model as called by training steps."""
        return self.model if self._compiled is None else self._compiled

    def configure_model(self) -> None:
        """Shard the model over the devices, under FSDP, before the optimizer is built."""
        if isinstance(self.trainer.strategy, FullyShardedStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """Return the optimizer of ``optim``, with its learning rate updated every optimizer step."""
        optimizer = self.optim(self.model)
        scheduler = LambdaLR(optimizer, self.schedule)
        self._settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the configured learning rate, weight decay, betas and schedule in place of those in a checkpoint.

        If they are the same, nothing changes, bit for bit.
        """
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        scheduler.lr_lambdas = [self.schedule] * len(self._settings)
        for group, settings in zip(optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
            group["lr"] = settings["initial_lr"] * self.schedule(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log like Lightning, but pass the metrics of a step to loggers once, at its end, under its number from 1."""
        self._logged.add(name)
        super().log(name, value, *args, **{**kwargs, "logger": False})

    def has_just_logged(self, name: str) -> bool:
        """Return whether a metric was logged in the current step, and not in an earlier one; for callbacks."""
        return name in self._logged

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Pass the step's metrics to the loggers, after all callbacks have logged."""
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

    def abandon_step(self) -> None:
        """Drop the gradients and losses of an unfinished optimizer step; no step may follow."""
        self._logged.clear()
        self.zero_grad(set_to_none=True)

    @property
    def should_log(self) -> bool:
        """Return whether the metrics of the current optimizer step are logged."""
        return is_logged(self.trainer, self.trainer.global_step + 1)

    def _log_loss(self, loss: Tensor, batch_idx: int) -> None:
        """Log an optimizer step's loss, the mean over its micro-batches so far; call in steps that are logged."""
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        self._step_loss = loss.detach() + (self._step_loss if micro_batch else 0.0)
        self.log("train/loss", self._step_loss / (micro_batch + 1), sync_dist=True)

    def _seed_step(self, batch_idx: int) -> None:
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        seed = step_seed(self.seed, self.trainer.global_step, micro_batch, self.trainer.global_rank)
        seed_generators(seed, self.device)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm, if the trainer is configured to, and log the norm before clipping."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"), foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.skipped = ~torch.isfinite(norm)  # the same on every rank, even if only one had the bad sample
        # Fused optimizers read this on the device and then change nothing, without a host sync.
        optimizer.found_inf = self.skipped.float()  # type: ignore[attr-defined]
        if self.should_log:
            self.log_dict({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration that rebuilds the model: plain containers only, so that loading executes nothing."""
        self._hand_over_metrics()  # first, or a run killed in between would resume after an unlogged step
        accumulate = self.trainer.accumulate_grad_batches
        entry = {"version": __version__, "config": self.config, "accumulate": accumulate}
        checkpoint["d2v"] = {**self.record, **entry}
        for counts in _batch_counts(checkpoint):  # an abandoned step counts as not begun
            whole = counts["processed"] // accumulate * accumulate
            if whole < counts["processed"]:
                counts.update(dict.fromkeys(counts, whole))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Recount the finished micro-batches, because this run may divide a step into another number of them."""
        now = self.trainer.accumulate_grad_batches
        then = checkpoint["d2v"].get("accumulate", now)
        for counts in _batch_counts(checkpoint):
            more = counts["processed"] // then * (now - then)  # runs are saved between steps
            for name in counts:
                counts[name] += more


def _batch_counts(checkpoint: dict[str, Any]) -> list[dict[str, int]]:
    """Return the place where Lightning's loops count micro-batches."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return [progress["total"], progress["current"]]


def step_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Return the seed of a micro-batch's randomness on the device, in [0, 2^63).

    Args:
        seed: seed of the run.
        step: optimizer step, from 0.
        micro_batch: number within the step, from 0.
        rank: of the process.
    """
    digest = hashlib.blake2b(repr((seed, step, micro_batch, rank)).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of ``device``, as ``torch.manual_seed`` does.

    That function also formats a stack trace for every kind of device that is not in use, which takes a third of a
    millisecond within the trainer's calls (docs/results/optimizations.md).

    Args:
        seed: seed of both.
        device: of the model; a GPU is the current one.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
