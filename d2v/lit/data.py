"""Data modules for Lightning: training batches, resuming within the data, and time spent waiting for batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

from d2v.data.batching import BatchSplit
from d2v.data.loading import Workers
from d2v.data.protocol import BatchLoader, PretrainData
from d2v.data.samplers import StepPlan
from d2v.errors import UserError
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch


class TimedLoader:
    """Iterable over a loader's batches that measures the time spent waiting for them.

    It has no length: a run ends at ``max_steps``, also within an epoch.
    """

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader
        self.wait_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class OtherBatch(UserError, RuntimeError):
    """A run cannot be resumed with another global batch."""


class ResumableDataModule(L.LightningDataModule):
    """Data module that resumes after the finished optimizer steps.

    Args:
        split: division of the global batch among devices and micro-batches.
        num_workers: number of data workers; 0 loads in the training process.
    """

    def __init__(self, split: BatchSplit, num_workers: int = 0) -> None:
        super().__init__()
        self.split = split
        self.num_workers = num_workers
        self.first_step = 0
        self._loader_states: list[dict[str, Any]] = []
        self.loader: TimedLoader | None = None

    def plan(self) -> StepPlan:
        """Return this rank's share of the run, from the current position."""
        trainer = self.trainer
        assert trainer is not None
        return StepPlan(
            num_batches=trainer.max_steps * trainer.accumulate_grad_batches,
            start_batch=self.first_step * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
        )

    def batches(self, plan: StepPlan, workers: Workers) -> BatchLoader:
        """Return the training batches of this rank."""
        raise NotImplementedError("data modules define batches")

    def train_dataloader(self) -> TimedLoader:
        """Return the batches from the current position to the end of the run."""
        assert self.trainer is not None
        pin_memory = self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator"
        batches = self.batches(self.plan(), Workers(self.num_workers, pin_memory))
        if self._loader_states:
            if len(self._loader_states) != self.trainer.world_size:
                raise OtherBatch(
                    f"devices: {len(self._loader_states)} devices read the shards of the run that is resumed, "
                    f"now there are {self.trainer.world_size}; resume it with as many"
                )
            batches.load_state_dict(self._loader_states[self.trainer.global_rank])
        self.loader = TimedLoader(batches)
        return self.loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch asynchronously; batches for a GPU are in pinned memory."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """Return the finished optimizer steps, the global batch, and the states of the loaders of all devices."""
        assert self.trainer is not None
        state = {"step": self.trainer.global_step, "global_batch_size": self.split.global_batch_size}
        own = {} if self.loader is None else self.loader.loader.state_dict(self._num_batches())
        return state | ({"loaders": gathered_objects(own)} if own else {})

    def _num_batches(self) -> int:
        """Return the number of this rank's micro-batches in the finished optimizer steps."""
        assert self.trainer is not None
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after the finished steps, with any division into micro-batches.

        Raises:
            OtherBatch: the steps had another global batch, so the position in the data is unknown.
        """
        before = state_dict.get("global_batch_size", self.split.global_batch_size)
        if not math.isclose(before, self.split.global_batch_size, rel_tol=1e-6):
            raise OtherBatch(
                f"global_batch_size={self.split.global_batch_size:g}: the run that is resumed has {before:g}; resume "
                "it with that, or start another from its weights by init_from"
            )
        self.first_step = state_dict["step"]
        self._loader_states = state_dict.get("loaders", [])


def gathered_objects(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the plain containers of all ranks, in order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    everyone: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everyone, own)
    return everyone


class PretrainDataModule(ResumableDataModule):
    """Data module of pretraining.

    Args:
        data: the data set.
        mask: generator of masks, used in the workers; None for batches without masks.
        split: division of the global batch among devices and micro-batches.
        num_workers: number of data workers; 0 loads in the training process.
        seed: seed of order, augmentation and masks.
    """

    def __init__(
        self, data: PretrainData, mask: MaskGenerator | None, split: BatchSplit, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(split, num_workers)
        data.check_mask(mask)
        self.data = data
        self.mask = mask
        self.seed = seed

    def batches(self, plan: StepPlan, workers: Workers) -> BatchLoader:
        """Return the training batches of this rank."""
        return self.data.loader(self.mask, self.seed, self.split, plan, workers)
