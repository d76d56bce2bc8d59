"""Training batches under Lightning: the loader, where it resumes, how long it keeps the trainer waiting."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from typing import Any, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from d2v.data.bad_samples import BadSampleCounter
from d2v.data.sampler import BatchPlan, StreamSampler
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch

log = logging.getLogger(__name__)


class PretrainData(Protocol):
    """What the trainer needs of a data set, whatever its modality (see :class:`d2v.data.images.ImageData`)."""

    @property
    def streaming(self) -> bool:
        """Whether ``pretrain_stream`` is to be used, not ``pretrain_dataset``."""

    @property
    def num_samples(self) -> int | None:
        """Samples to pretrain on; None for a stream."""

    def pretrain_dataset(self, seed: int) -> Dataset[Any]:
        """Samples by :class:`d2v.data.sampler.SampleKey`."""

    def pretrain_collate(self, mask: MaskGenerator, seed: int) -> Any:
        """Samples to a batch with masks; ValueError if the masks do not fit the data."""

    def pretrain_stream(self, mask: MaskGenerator, seed: int, plan: BatchPlan) -> IterableDataset[Batch]:
        """Batches with masks."""

    def bad_sample_counter(self) -> BadSampleCounter:
        """Counts and limits what cannot be read."""


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
            batch = next(batches, None)
            self.wait_s += time.perf_counter() - start
            if batch is None:
                return
            for entry in self.bad_samples.update(batch.skipped, num_seen=len(batch.inputs)):
                log.warning("skipped %s (%d bad so far)", entry, self.bad_samples.num_bad)
            yield batch


def _leave_interrupts_to_the_trainer(_worker: int) -> None:
    """A Ctrl-C reaches every process of the group; the trainer still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class PretrainDataModule(L.LightningDataModule):
    """Feeds a run from one data set.

    Args:
        data: the data set.
        mask: draws the masks, in the workers.
        micro_batch_size: samples per device and forward pass.
        num_workers: processes that load and mask; 0 loads in the training process.
        seed: decides order, augmentation and masks.
    """

    def __init__(
        self, data: PretrainData, mask: MaskGenerator, micro_batch_size: int, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.data = data
        self.collate = data.pretrain_collate(mask, seed)
        self.mask = mask
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.samples_seen = 0
        self.loader: TimedLoader | None = None

    def train_dataloader(self) -> TimedLoader:
        """Batches from where the run stands to its end."""
        trainer = self.trainer
        assert trainer is not None
        share = self.micro_batch_size * trainer.world_size
        plan: dict[str, Any] = {
            "micro_batch_size": self.micro_batch_size,
            "num_batches": trainer.max_steps * trainer.accumulate_grad_batches,
            "start_batch": self.samples_seen // share,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
        }
        common: dict[str, Any] = {
            "num_workers": self.num_workers,
            "worker_init_fn": _leave_interrupts_to_the_trainer,
            "pin_memory": trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        }
        loader: DataLoader[Any]
        if self.data.streaming:
            stream = self.data.pretrain_stream(self.mask, self.seed, BatchPlan(**plan))
            loader = DataLoader(stream, batch_size=None, **common)
        else:
            num_samples = self.data.num_samples
            assert num_samples is not None
            sampler = StreamSampler(num_samples=num_samples, seed=self.seed, **plan)
            dataset = self.data.pretrain_dataset(self.seed)
            loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=self.collate, **common)
        self.loader = TimedLoader(loader, self.data.bad_sample_counter())
        return self.loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting: batches for a GPU come in pinned memory."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """Samples the finished optimizer steps have consumed, over all ranks, and how their batches were split."""
        trainer = self.trainer
        assert trainer is not None
        per_step = self.micro_batch_size * trainer.world_size * trainer.accumulate_grad_batches
        return {"samples_seen": trainer.global_step * per_step, "accumulate": trainer.accumulate_grad_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the samples already seen.

        Raises:
            ValueError: the checkpoint's run accumulated another number of micro-batches.
        """
        trainer = self.trainer
        assert trainer is not None
        if state_dict["accumulate"] != trainer.accumulate_grad_batches:
            raise ValueError(
                f"this run accumulates {trainer.accumulate_grad_batches} micro-batches a step, the checkpoint's "
                f"{state_dict['accumulate']}: resume with the same global_batch_size, micro_batch_size and devices"
            )
        self.samples_seen = state_dict["samples_seen"]
