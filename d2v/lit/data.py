"""Training batches under Lightning: the loader, where it resumes, how long it keeps the trainer waiting."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.batching import BatchSplit
from d2v.data.datasets import leave_interrupts_to_the_parent
from d2v.data.samplers import BatchPlan, StepPlan
from d2v.errors import UserError, without_stack
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch

log = logging.getLogger(__name__)


class PretrainData(Protocol):
    """Protocol of a data set to pretrain on, whatever its modality (see :class:`d2v.data.images.data.ImageData`)."""

    @property
    def batch_unit(self) -> str:
        """Unit of ``global_batch_size``: "samples", or "seconds" of audio."""

    @property
    def size(self) -> float | None:
        """The data to pretrain on, in ``batch_unit``; None for a stream."""

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Shape in which the tokens of one sample lie, of the longest where lengths differ."""

    @property
    def tokens_are(self) -> str:
        """Words for ``token_grid`` in a summary: "each", or "up to"."""

    @property
    def streaming(self) -> bool:
        """Return whether ``pretrain_stream`` is to be used, not ``pretrain_dataset``."""

    def split_batch(self, global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
        """Derive accumulation; ValueError naming key, value and fix."""

    def pretrain_dataset(self, seed: int) -> Dataset[Any]:
        """Samples by the keys that ``pretrain_sampler`` gives."""

    def pretrain_sampler(self, seed: int, split: BatchSplit, **plan: int) -> StepPlan:
        """Batches of keys; ``plan`` are the arguments of a :class:`StepPlan`."""

    def pretrain_collate(self, mask: MaskGenerator, seed: int) -> Any:
        """Samples to a batch with masks; ValueError if the masks do not fit the data."""

    def pretrain_stream(self, mask: MaskGenerator, seed: int, plan: BatchPlan) -> IterableDataset[Batch]:
        """Batches with masks."""

    def bad_sample_counter(self) -> BadSampleCounter:
        """Counts and limits what cannot be read."""

    def describe(self) -> list[str]:
        """Lines of the summary before a run: splits, sizes, classes, files left out."""


class TimedLoader:
    """Passes batches on, names what they had to skip, and measures the time spent waiting for them.

    It has no length: a run ends at ``trainer.max_steps``, wherever in an epoch that is.
    """

    def __init__(self, loader: DataLoader[Batch], bad_samples: BadSampleCounter) -> None:
        self.loader = loader
        self.bad_samples = bad_samples
        self.wait_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = _next(batches)
            self.wait_s += time.perf_counter() - start
            if batch is None:
                return
            num_seen = len(batch.inputs) if batch.num_read is None else batch.num_read
            for entry in self.bad_samples.update(batch.skipped, num_seen):
                log.warning("skipped %s (%d bad so far)", entry, self.bad_samples.num_bad)
            yield batch


def _next(batches: Iterator[Batch]) -> Batch | None:
    """The next batch or None; what a data worker found wrong with the data without the worker's stack trace."""
    try:
        return next(batches, None)
    except UserError as error:
        raise type(error)(without_stack(str(error))) from error


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
        self.loader: TimedLoader | None = None

    def plan(self) -> dict[str, int]:
        """This rank's share of the run: arguments of a :class:`StepPlan`."""
        trainer = self.trainer
        assert trainer is not None
        return {
            "num_batches": trainer.max_steps * trainer.accumulate_grad_batches,
            "start_batch": self.first_step * trainer.accumulate_grad_batches,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
        }

    def loader_options(self) -> dict[str, Any]:
        """Arguments of every training ``DataLoader``."""
        assert self.trainer is not None
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": leave_interrupts_to_the_parent,
            "pin_memory": self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        }

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting: batches for a GPU come in pinned memory."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """Finished optimizer steps, and how much each of them read."""
        assert self.trainer is not None
        return {"step": self.trainer.global_step, "global_batch_size": self.split.global_batch_size}

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


class PretrainDataModule(ResumableDataModule):
    """Feeds a run from one data set.

    Args:
        data: the data set.
        mask: draws the masks, in the workers.
        split: how the global batch is spread.
        num_workers: processes that load and mask; 0 loads in the training process.
        seed: decides order, augmentation and masks.
    """

    def __init__(
        self, data: PretrainData, mask: MaskGenerator, split: BatchSplit, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(split, num_workers)
        self.data = data
        self.collate = data.pretrain_collate(mask, seed)
        self.mask = mask
        self.seed = seed

    def train_dataloader(self) -> TimedLoader:
        """Batches from where the run stands to its end."""
        plan, options = self.plan(), self.loader_options()
        loader: DataLoader[Any]
        if self.data.streaming:
            stream_plan = BatchPlan(micro_batch_size=int(self.split.micro_batch_size), **plan)
            loader = DataLoader(
                self.data.pretrain_stream(self.mask, self.seed, stream_plan), batch_size=None, **options
            )
        else:
            sampler: Any = self.data.pretrain_sampler(self.seed, self.split, **plan)
            dataset = self.data.pretrain_dataset(self.seed)
            loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=self.collate, **options)
        self.loader = TimedLoader(loader, self.data.bad_sample_counter())
        return self.loader
