"""Loaders for evaluation: every sample once, in batches of samples of about the same length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import DataLoader

from d2v.data.datasets import EvalSamples
from d2v.data.loading import Workers
from d2v.data.protocol import EvalData
from d2v.data.source import Sample, T
from d2v.types import Batch


def eval_loader(data: EvalData, split: str, batch_size: int | None = None, num_workers: int = 0) -> DataLoader[Sample]:
    """Load every sample of a split once: see :func:`sorted_loader`.

    Args:
        data: what to evaluate on.
        split: of ``eval_dataset``.
        batch_size: samples a batch; None for the data's own.
        num_workers: processes that load.
    """
    size = data.eval_batch_size if batch_size is None else batch_size
    return sorted_loader(data.eval_dataset(split), size, data.eval_collate, num_workers)


def sorted_loader(
    samples: EvalSamples[T],
    batch_size: int,
    collate: Callable[[Sequence[Sample]], Batch],
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Sample]:
    """Load every sample once, or one process's share: every ``world_size``-th batch.

    If samples differ in length, they are sorted by it, to save padding; ``Batch.sample_ids`` identifies them.
    """
    lengths = getattr(samples.source, "lengths", None)
    order = list(range(len(samples))) if lengths is None else np.argsort(lengths, kind="stable").tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Workers(num_workers).load(samples, batch_sampler=batches[rank::world_size], collate_fn=collate)
