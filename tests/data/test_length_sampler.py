"""Clips of about the same length in a step, every clip once an epoch, however a step is split."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.keys import ClipKey
from d2v.data.length_sampler import LengthSampler
from d2v.data.samplers import StepPlan

SPLITS = [(1, 1), (2, 1), (1, 4), (4, 1), (2, 2)]  # world_size, accumulate
LENGTHS = st.builds(
    lambda n, seed: np.random.default_rng(seed).integers(1, 60, n), st.integers(1, 40), st.integers(0, 99)
)


def step_keys(steps: int, world_size: int = 1, accumulate: int = 1, start: int = 0, **options) -> list[list[list]]:
    """The micro-batches of every optimizer step, in the order in which a step is dealt."""
    ranks = [
        list(
            LengthSampler(
                num_batches=steps * accumulate,
                start_batch=start * accumulate,
                rank=rank,
                world_size=world_size,
                accumulate=accumulate,
                **options,
            )
        )
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {(steps - start) * accumulate}
    return [[rank[step * accumulate + a] for a in range(accumulate) for rank in ranks] for step in range(steps - start)]


def joined(parts: list[list]) -> list:
    return [key for part in parts for key in part]


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, room=st.integers(0, 300), pool_size=st.integers(0, 90), seed=st.integers(0, 2**40))
def test_every_clip_once_an_epoch(lengths, room, pool_size, seed):
    sampler = LengthSampler(
        lengths=lengths, step_length=int(lengths.max()) + room, pool_size=pool_size, seed=seed, num_batches=120
    )
    keys = joined(list(sampler))
    counts = Counter((key.epoch, key.index) for key in keys)
    assert max(counts.values()) == 1
    # Of the pools begun before the last one, at most what is left over is still to come.
    positions = (len(keys) // sampler.pool_size - 1) * sampler.pool_size
    missing = sum(
        (epoch, index) not in counts for epoch in range(positions // len(lengths)) for index in range(len(lengths))
    )
    assert missing < max(1, (int(lengths.max()) + room) // int(lengths.max()))


def test_an_epoch_is_over_after_its_clips():
    lengths = np.arange(10, 50)
    sampler = LengthSampler(lengths=lengths, step_length=100, pool_size=20, num_batches=60)
    keys = joined(list(sampler))
    for epoch in range(3):
        found = {(key.epoch, key.index) for key in keys[40 * epoch : 40 * epoch + 40]}
        assert len(found & {(epoch, index) for index in range(40)}) >= 38  # one may be left over from the pool before


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, room=st.integers(0, 300), pool_size=st.integers(0, 90), seed=st.integers(0, 99))
def test_a_step_is_cropped_to_its_shortest_and_within_its_budget(lengths, room, pool_size, seed):
    step_length = int(lengths.max()) + room
    sampler = LengthSampler(lengths=lengths, step_length=step_length, pool_size=pool_size, seed=seed, num_batches=30)
    for step in sampler:
        assert {key.length for key in step} == {min(lengths[key.index] for key in step)}
        assert {key.step_size for key in step} == {len(step)}
        assert len(step) * step[0].length <= step_length


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, room=st.integers(0, 300), pool_size=st.integers(0, 90), seed=st.integers(0, 99))
def test_a_step_is_the_same_for_every_split_and_dealt_evenly(lengths, room, pool_size, seed):
    options = {"lengths": lengths, "step_length": 4 * int(lengths.max()) + room, "pool_size": pool_size, "seed": seed}
    reference = [step for (step,) in step_keys(12, **options)]
    for world_size, accumulate in SPLITS:
        steps = step_keys(12, world_size, accumulate, **options)
        assert [joined(step) for step in steps] == reference
        for step in steps:
            sizes = [len(part) for part in step]
            assert len(sizes) == world_size * accumulate
            assert max(sizes) - min(sizes) <= 1


@settings(max_examples=30, deadline=None)
@given(
    lengths=LENGTHS,
    pool_size=st.integers(0, 50),
    start=st.integers(0, 12),
    world_size=st.integers(1, 2),
    accumulate=st.integers(1, 3),
)
def test_a_resumed_sampler_goes_on_where_it_stopped(lengths, pool_size, start, world_size, accumulate):
    options = {"lengths": lengths, "step_length": 7 * int(lengths.max()), "pool_size": pool_size}
    whole = step_keys(12, world_size, accumulate, **options)
    assert step_keys(12, world_size, accumulate, start, **options) == whole[start:]
    sampler = LengthSampler(num_batches=12, **options)
    sampler.skip_to(start)
    assert list(sampler) == [joined(step) for step in whole[start:]] == list(sampler)
    assert len(sampler) == 12


def test_the_order_depends_on_the_seed_and_the_pass():
    def order(seed: int) -> list[int]:
        sampler = LengthSampler(lengths=np.full(100, 10), step_length=50, seed=seed, pool_size=100, num_batches=40)
        return [key.index for key in joined(list(sampler))]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:100] != order(0)[100:]
    assert sorted(order(0)[:100]) == sorted(order(0)[100:]) == list(range(100))


def test_steps_and_the_clips_in_them_are_shuffled_anew_in_every_pool():
    lengths = np.random.default_rng(0).permutation(np.arange(100, 500))

    def pools(seed: int) -> list[list[list[int]]]:
        sampler = LengthSampler(lengths=lengths, step_length=5000, pool_size=400, seed=seed, num_batches=48)
        steps = [[int(lengths[key.index]) for key in step] for step in sampler]
        return [steps[:24], steps[24:48]]

    (first, second), (other, _) = pools(0), pools(1)
    assert len({tuple(map(min, pool)) for pool in (first, second, other)}) == 3
    assert list(map(min, first)) != sorted(map(min, first))
    assert sum(step == sorted(step) for step in first) < 3


def test_the_order_within_a_step_depends_on_the_seed():
    """Lengths that differ leave one way to fill the only step: what is left to the seed is the order in it."""
    lengths = np.arange(100, 116)

    def step(seed: int) -> list[int]:
        (keys,) = LengthSampler(lengths=lengths, step_length=16 * 100, pool_size=16, seed=seed, num_batches=1)
        return [key.index for key in keys]

    assert step(0) == step(0)
    orders = [step(seed) for seed in range(4)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_larger_pools_crop_less():
    lengths = np.random.default_rng(0).integers(100, 1000, 2000)

    def lost(pool_size: int) -> float:
        steps = list(LengthSampler(lengths=lengths, step_length=20_000, pool_size=pool_size, num_batches=100))
        kept = sum(len(step) * step[0].length for step in steps)
        return 1 - kept / sum(lengths[key.index] for key in joined(steps))

    assert lost(2000) < 0.03
    assert lost(2000) < lost(200) < lost(40)


def test_a_pool_makes_fifty_steps_unless_it_is_chosen():
    lengths = np.random.default_rng(0).integers(100, 1000, 3000)
    sampler = LengthSampler(lengths=lengths, step_length=10_000, num_batches=50)
    assert sampler.pool_size == pytest.approx(50 * 10_000 / lengths.mean(), abs=1)
    assert 0.9 * sampler.pool_size < sum(len(step) for step in sampler) < 1.1 * sampler.pool_size
    assert LengthSampler(lengths=lengths, step_length=10_000, pool_size=70, num_batches=50).pool_size == 70
    assert LengthSampler(lengths=lengths, step_length=10_000, pool_size=7, num_batches=50).pool_size == 10  # a step's


def test_clips_may_be_fewer_than_a_step_holds():
    steps = list(LengthSampler(lengths=np.array([30, 50]), step_length=400, pool_size=8, num_batches=3))
    assert [len(joined([step])) for step in steps] == [8, 8, 8]
    assert {key.length for key in joined(steps)} == {30}
    assert [Counter(key.index for key in step) for step in steps] == [{0: 4, 1: 4}] * 3


# --- no step is too small to be dealt


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    parts=st.integers(1, 4),
    room=st.integers(0, 200),
    pool_size=st.integers(0, 60),
)
def test_every_micro_batch_has_a_sample(lengths, parts, room, pool_size):
    step_length = max(lengths) * parts + room
    common = {"lengths": np.array(lengths), "step_length": step_length, "pool_size": pool_size, "num_batches": 30}
    batches = [list(LengthSampler(**common, world_size=parts, rank=rank)) for rank in range(parts)]
    for step in zip(*batches, strict=True):
        assert all(step)
        keys = [key for batch in step for key in batch]
        assert {key.step_size for key in keys} == {len(keys)}
        assert len(keys) * keys[0].length <= step_length
        assert min(lengths[key.index] for key in keys) == keys[0].length


def test_what_is_left_of_a_pool_goes_into_the_next():
    sampler = LengthSampler(lengths=np.full(10, 100), step_length=300, pool_size=10, num_batches=10)
    steps = list(sampler)
    assert [len(step) for step in steps] == [3] * 10
    counts = Counter(key.index for step in steps for key in step)
    assert sum(counts.values()) == 30
    assert set(counts.values()) == {3}


def test_resuming_late_is_fast():
    rng = np.random.default_rng(0)
    lengths = rng.integers(32_000, 320_000, 30_000)
    sampler = LengthSampler(lengths=lengths, step_length=8_000_000, num_batches=30_000, start_batch=29_999)
    start = time.perf_counter()
    assert len(list(sampler)) == 1
    assert time.perf_counter() - start < 20


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([], dtype=np.int64)}, "num_samples=0: the data set is empty"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"step_length": 99}, r"global_batch_size holds 0 of the longest samples.*lower max_seconds"),
        (
            {"world_size": 2, "accumulate": 2, "step_length": 399},
            "holds 3 of the longest samples, but 2 devices x 2 accumulated micro-batches need one each",
        ),
        ({"world_size": 0}, "world_size=0: must be at least 1"),
        ({"accumulate": 0}, "accumulate=0: must be at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank=2: must be in \[0, world_size=2\)"),
        ({"rank": -1}, r"rank=-1: must be in \[0, world_size=1\)"),
        ({"num_batches": 7, "accumulate": 2}, "num_batches=7: must be a multiple of accumulate=2"),
        ({"num_batches": -2}, "num_batches=-2: must be a multiple"),
        ({"start_batch": 3, "accumulate": 2}, "start_batch=3: must be a multiple of accumulate=2"),
        ({"start_batch": 9}, r"start_batch=9: .*in \[0, num_batches=8\]"),
        ({"start_batch": -1}, r"start_batch=-1: .*in \[0, num_batches=8\]"),
    ],
)
def test_errors_name_the_argument(change, message):
    options = {"lengths": np.array([100, 50]), "step_length": 1000, "num_batches": 8}
    with pytest.raises(ValueError, match=message):
        LengthSampler(**(options | change))


def test_a_plan_may_be_empty_or_done():
    assert len(StepPlan(num_batches=0)) == 0
    assert list(LengthSampler(lengths=np.array([5]), step_length=5, num_batches=0)) == []
    assert list(LengthSampler(lengths=np.array([5]), step_length=5, num_batches=3, start_batch=3)) == []
    plan = StepPlan(num_batches=8, accumulate=2)
    with pytest.raises(ValueError, match="start_batch=10"):
        plan.skip_to(10)
    assert plan.start_batch == 0


def test_keys_are_plain_numbers():
    key = next(iter(LengthSampler(lengths=np.array([50, 100]), step_length=100, num_batches=1)))[0]
    assert isinstance(key, ClipKey)
    assert {type(value) for value in key} == {int}


@given(lengths=LENGTHS, room=st.integers(0, 300), seed=st.integers(0, 99))
def test_without_crops_it_is_the_padded_length_that_is_limited(lengths, room, seed):
    step_length = int(lengths.max()) + room
    sampler = LengthSampler(lengths=lengths, step_length=step_length, seed=seed, num_batches=30, crop=False)
    for keys in sampler:
        assert len(keys) * max(int(lengths[key.index]) for key in keys) <= step_length


def test_weights_are_summed_over_a_step_however_it_is_split():
    lengths, weights = np.arange(20, 60), np.arange(100, 140)
    options = {"lengths": lengths, "step_length": 400, "weights": weights, "crop": False}
    whole = list(LengthSampler(**options, num_batches=6))
    parts = list(LengthSampler(**options, num_batches=12, accumulate=2))
    for step, keys in enumerate(whole):
        total = sum(int(weights[key.index]) for key in keys)
        assert {key.step_size for key in keys} == {total}
        assert {key.step_size for part in parts[2 * step : 2 * step + 2] for key in part} == {total}


def test_a_small_set_is_not_repeated_within_a_step():
    sampler = LengthSampler(lengths=np.full(12, 10), step_length=60, num_batches=20)
    for keys in sampler:
        assert len({key.index for key in keys}) == len(keys)
