"""Every sample once an epoch, however the global batch is split, and from wherever the run resumes."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.batching import split_batch, split_seconds
from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.data.samplers import BatchPlan, StreamSampler

SPLITS = [(1, 8, 1), (2, 4, 1), (1, 2, 4), (4, 1, 2), (2, 2, 2), (8, 1, 1)]  # world_size, micro_batch_size, accumulate


def step_samples(num_samples: int, world_size: int, micro: int, accumulate: int, steps: int, seed: int) -> list[list]:
    """The keys of each optimizer step, over all ranks, in stream order."""
    ranks = [
        list(
            StreamSampler(
                num_samples=num_samples,
                micro_batch_size=micro,
                num_batches=steps * accumulate,
                seed=seed,
                rank=rank,
                world_size=world_size,
                accumulate=accumulate,
            )
        )
        for rank in range(world_size)
    ]
    return [
        [key for a in range(accumulate) for rank in ranks for key in rank[step * accumulate + a]]
        for step in range(steps)
    ]


@settings(max_examples=50, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    world_size=st.integers(1, 4),
    micro=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_every_sample_once_an_epoch(num_samples, world_size, micro, accumulate, seed):
    steps = 3 * num_samples // (world_size * micro * accumulate) + 1
    keys = [key for step in step_samples(num_samples, world_size, micro, accumulate, steps, seed) for key in step]
    whole_epochs = len(keys) // num_samples
    counts = Counter(islice(keys, whole_epochs * num_samples))
    assert counts == {SampleKey(e, i): 1 for e in range(whole_epochs) for i in range(num_samples)}


@settings(max_examples=25, deadline=None)
@given(num_samples=st.integers(1, 50), seed=st.integers(0, 1000))
def test_a_step_is_the_same_for_every_split(num_samples, seed):
    reference = step_samples(num_samples, *SPLITS[0], steps=5, seed=seed)
    for split in SPLITS[1:]:
        assert step_samples(num_samples, *split, steps=5, seed=seed) == reference


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 30), micro=st.integers(1, 8), start=st.integers(0, 12), world_size=st.integers(1, 3))
def test_a_resumed_sampler_goes_on_where_it_stopped(num_samples, micro, start, world_size):
    plan = {"num_samples": num_samples, "micro_batch_size": micro, "num_batches": 12, "world_size": world_size}
    whole = list(StreamSampler(**plan))
    resumed = StreamSampler(**plan, start_batch=start)
    assert list(resumed) == whole[start:]
    assert len(resumed) == 12
    later = StreamSampler(**plan)
    later.skip_to(start)
    assert list(later) == whole[start:] == list(later)  # and again: iterating does not move the start


def test_positions_of_a_step_are_contiguous():
    plans = [BatchPlan(micro_batch_size=3, num_batches=8, rank=rank, world_size=2, accumulate=4) for rank in range(2)]
    second_step = [p for batch in range(4, 8) for plan in plans for p in plan.positions(batch)]
    assert second_step == list(range(24, 48))


def test_the_order_depends_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StreamSampler(num_samples=100, micro_batch_size=100, num_batches=epoch + 1, seed=seed)
        return [key.index for key in list(sampler)[epoch]]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)


def test_random_streams_are_independent():
    draws = {
        (stream, epoch, index): sample_rng(5, epoch, index, stream).random()
        for stream in RandomStream
        for epoch in range(3)
        for index in range(3)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[RandomStream.MASK, 1, 2] == sample_rng(5, 1, 2, RandomStream.MASK).random()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples=0: the data set is empty"),
        ({"micro_batch_size": 0}, "micro_batch_size=0: must be at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank=2: must be in \[0, world_size=2\)"),
        ({"num_batches": 7, "accumulate": 2}, "num_batches=7: must be a multiple of accumulate=2"),
        ({"start_batch": 3, "accumulate": 2}, "start_batch=3: must be a multiple of accumulate=2"),
        ({"start_batch": 9}, r"start_batch=9: .*in \[0, num_batches=8\]"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        StreamSampler(**({"num_samples": 10, "micro_batch_size": 2, "num_batches": 8} | change))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, None, 1), (8, 1, 1)),
        ((8, 2, 1), (2, 4, 1)),
        ((8, 100, 1), (8, 1, 1)),
        ((256, 16, 16), (16, 1, 16)),
        ((256, 16, 1), (16, 16, 1)),
        ((12, 5, 1), (4, 3, 1)),  # the largest divisor below the limit
        ((7, 4, 1), (1, 7, 1)),
    ],
)
def test_split_batch(arguments: tuple[int, int | None, int], expected: tuple[int, int, int]) -> None:
    split = split_batch(*arguments)
    assert (split.micro_batch_size, split.accumulate, split.world_size) == expected


@given(st.integers(1, 64), st.none() | st.integers(1, 64), st.integers(1, 8))
def test_split_batch_covers_the_global_batch_exactly(per_device: int, limit: int | None, world_size: int) -> None:
    split = split_batch(per_device * world_size, limit, world_size)
    assert split.micro_batch_size * split.accumulate * split.world_size == per_device * world_size
    assert limit is None or split.micro_batch_size <= limit


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, None, 1), ["global_batch_size=0"]),
        ((-4, None, 2), ["global_batch_size=-4"]),
        ((10, None, 4), ["global_batch_size=10", "4 devices", "8"]),
        ((8, 0, 1), ["micro_batch_size=0", "null"]),
    ],
)
def test_split_batch_names_key_value_and_fix(arguments: tuple[int, int | None, int], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        split_batch(*arguments)
    for word in words:
        assert word in str(error.value)


def test_seconds_that_divide_but_for_the_last_bits_hold_as_many_clips() -> None:
    """0.3 / 0.1 is 2.9999999999999996: three micro-batches of a clip each."""
    split = split_seconds(0.3, 0.1, 1, longest=0.1)
    assert (split.accumulate, split.world_size) == (3, 1)
    with pytest.raises(ValueError, match=r"micro_batch_size=0\.1 seconds"):
        split_seconds(0.3, 0.1, 1, longest=0.11)
