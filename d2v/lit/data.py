"""Training batches under Lightning: the loader, where it resumes, how long it keeps the trainer waiting."""

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
    """Passes batches on, and measures the time spent waiting for them.

    It has no length: a run ends at ``trainer.max_steps``, wherever in an epoch that is.
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
    """A run is resumed with another global batch."""


class ResumableDataModule(L.LightningDataModule):
    """Remembers which optimizer steps are done, and goes on after them.

    Args:
        split: how the global batch is spread.
        num_workers: processes that load; 0 loads in the training process.
    """

    def __init__(self, split: BatchSplit, num_workers: int = 0) -> None:
        super().__init__()
        self.split = split
        self.num_workers = num_workers
        self.first_step = 0
        self._loader_states: list[dict[str, Any]] = []
        self.loader: TimedLoader | None = None

    def plan(self) -> StepPlan:
        """This rank's share of the run, from where it stands."""
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
        """Training batches of this rank."""
        raise NotImplementedError("data modules define batches")

    def train_dataloader(self) -> TimedLoader:
        """Batches from where the run stands to its end."""
        assert self.trainer is not None
        pin_memory = self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator"
        batches = self.batches(self.plan(), Workers(self.num_workers, pin_memory))
        if self._loader_states:
            if len(self._loader_states) != self.trainer.world_size:
                raise OtherBatch(
                    f"trainer.devices: {len(self._loader_states)} devices read the shards of the run that is resumed, "
                    f"now there are {self.trainer.world_size}; resume it with as many"
                )
            batches.load_state_dict(self._loader_states[self.trainer.global_rank])
        self.loader = TimedLoader(batches)
        return self.loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch without waiting: batches for a GPU come in pinned memory."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """Finished optimizer steps, how much each of them read, and the loaders' own states, one a device."""
        assert self.trainer is not None
        state = {"step": self.trainer.global_step, "global_batch_size": self.split.global_batch_size}
        own = {} if self.loader is None else self.loader.loader.state_dict(self._num_batches())
        return state | ({"loaders": gathered_objects(own)} if own else {})

    def _num_batches(self) -> int:
        """Micro-batches of this rank that the finished optimizer steps took."""
        assert self.trainer is not None
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the steps already done, however they are cut into micro-batches now.

        Raises:
            OtherBatch: they were of another size, so what they have read is not known.
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
    """The plain containers of every rank, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    everyone: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everyone, own)
    return everyone


class PretrainDataModule(ResumableDataModule):
    """Feeds a run from one data set.

    Args:
        data: the data set.
        mask: draws the masks, in the workers; None for batches without.
        split: how the global batch is spread.
        num_workers: processes that load and mask; 0 loads in the training process.
        seed: decides order, augmentation and masks.
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
        """Training batches of this rank."""
        return self.data.loader(self.mask, self.seed, self.split, plan, workers)
