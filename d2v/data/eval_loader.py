"""Batches to evaluate on: every sample once, those of about the same length together."""

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
    """Every sample of a split of a data set, once: see :func:`sorted_loader`.

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
    """Batches of every sample, once, or of one process's share of them: every ``world_size``-th batch.

    Where samples differ in length, a batch holds samples of about the same, or most of the work would be on padding:
    they come sorted by it. ``Batch.sample_ids`` tells which is which.
    """
    lengths = getattr(samples.source, "lengths", None)
    order = list(range(len(samples))) if lengths is None else np.argsort(lengths, kind="stable").tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Workers(num_workers).load(samples, batch_sampler=batches[rank::world_size], collate_fn=collate)
