"""Batches from a stream in memory: order, shuffle, what a record tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.data.samplers import BatchPlan
from d2v.data.source import Sample
from d2v.data.streams import StreamBatches
from d2v.types import Batch


class Numbers:
    """A stream of 0, 1, ... count - 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def decode(self, record: int) -> int:
        return record

    def name(self, index: int) -> str:
        return f"#{index}"


def number_and_draw(record: int, rng: np.random.Generator) -> Tensor:
    return torch.tensor([record, rng.random()], dtype=torch.float64)


def collate(samples: Sequence[Sample]) -> Batch:
    inputs = torch.stack([sample.inputs for sample in samples if sample.inputs is not None])
    return Batch("image", inputs, torch.tensor([tuple(sample.key) for sample in samples]))


def read(count: int, shuffle_buffer: int, epochs: int = 1, seed: int = 0) -> list[list[int]]:
    """The numbers of every epoch, in the order in which they come."""
    plan = BatchPlan(num_batches=count * epochs, micro_batch_size=1)
    batches = StreamBatches(Numbers(count), number_and_draw, collate, seed, plan, shuffle_buffer)
    numbers = [int(batch.inputs[0, 0]) for batch in batches]
    return [numbers[i : i + count] for i in range(0, len(numbers), count)]


def test_every_row_is_shuffled_where_the_buffer_holds_all_of_them() -> None:
    (order,) = read(64, shuffle_buffer=64)
    assert sorted(order) == list(range(64))
    expected = sample_rng(0, 0, 0, RandomStream.ORDER).permutation(64).tolist()
    assert order == expected
    assert read(64, shuffle_buffer=1000) == [expected]


def test_the_last_rows_of_a_longer_stream_are_shuffled_too() -> None:
    (order,) = read(200, shuffle_buffer=50)
    assert sorted(order) == list(range(200))
    last = order[-50:]
    assert sum(a < b for a, b in pairwise(last)) < 40  # sorted: 49; shuffled: about 25
    # A buffer in which places are replaced holds old rows at low places: its own order is none, either.
    assert np.corrcoef(np.arange(50), last)[0, 1] < 0.5


def test_the_order_depends_on_the_seed_and_the_epoch_and_a_buffer_of_one_keeps_it() -> None:
    first, second = read(40, shuffle_buffer=10, epochs=2)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(40))
    assert read(40, shuffle_buffer=10, seed=1)[0] != first
    assert read(40, shuffle_buffer=1, epochs=2) == [list(range(40))] * 2


def test_a_view_draws_from_its_samples_own_generator() -> None:
    plan = BatchPlan(num_batches=6, micro_batch_size=4)
    for batch in StreamBatches(Numbers(12), number_and_draw, collate, 3, plan, 5):
        for (number, draw), key in zip(batch.inputs.tolist(), batch.sample_ids.tolist(), strict=True):
            assert number == key[1]
            assert draw == sample_rng(3, *SampleKey(*key), RandomStream.VIEW).random()
