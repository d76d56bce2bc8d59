"""Clips of speech as batches: lengths, crops, masks, bad clips."""

from __future__ import annotations

import logging
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_batches import assert_same_batches
from short_clips import CONVS, FACTORIES, MASK, RATE, SECONDS, damage, loader, save, speech

from d2v.data.bad_samples import BadSample, TooManyBadSamples
from d2v.data.batching import BatchSplit
from d2v.data.keys import ClipKey
from d2v.data.speech.batches import crop_start
from d2v.data.speech.clips import AudioClips, Clip
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import audio_manifest
from d2v.interop.build import build
from d2v.objective.masking import SpanMask
from d2v.types import Batch, num_frames

soundfile = pytest.importorskip("soundfile")

pytest.importorskip("torchaudio")


def test_a_batch_holds_clips_of_one_length_up_to_its_seconds(folder):
    data = speech(folder)
    batches = list(loader(data, steps=40))
    for batch in batches:
        lengths = data.train.lengths[batch.sample_ids]
        assert batch.inputs.shape == (len(lengths), min(lengths.min(), 0.3 * RATE))
        assert batch.inputs.numel() <= 1.0 * RATE
        assert batch.step_size == len(lengths)
        assert batch.inputs.dtype == torch.float32
        assert (batch.modality, batch.padding_mask, batch.labels, batch.skipped) == ("speech", None, None, ())
    assert max(batch.inputs.numel() for batch in batches) > 0.85 * RATE
    assert {batch.inputs.shape[1] for batch in batches} > {4800, 1600}


def test_masks_cover_frames_that_exist(folder):
    for batch in loader(speech(folder), steps=20):
        frames = num_frames(batch.inputs.shape[1], CONVS)
        assert batch.mask.mask.shape == (2 * len(batch.inputs), frames)
        assert batch.mask.num_masks == 2
        assert (batch.mask.mask.sum(1) == frames // 2).all()


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (3, 1)])
def test_a_step_keeps_its_seconds_and_clips_however_it_is_split(folder, world_size, accumulate):
    data = speech(folder)
    plan = {"seconds": 2.0, "world_size": world_size, "accumulate": accumulate}
    ranks = [list(loader(data, rank=rank, **plan)) for rank in range(world_size)]
    for step, whole in enumerate(loader(data, seconds=2.0)):
        parts = [rank[step * accumulate + a] for a in range(accumulate) for rank in ranks]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.mask.mask for part in parts]), whole.mask.mask)
        assert {part.step_size for part in parts} == {whole.step_size} == {len(whole.inputs)}
        assert whole.inputs.numel() <= 2.0 * RATE


def test_batches_are_the_same_for_any_number_of_workers_and_leave_global_randomness_alone(folder):
    data = speech(folder)
    states = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    alone = list(loader(data, steps=4))
    dataset, collate = data.pretrain_dataset(3), data.pretrain_collate(MASK, 3)
    collate([dataset[ClipKey(0, 0, 800, 1)]])
    assert random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    assert_same_batches(alone, list(loader(data, steps=4, workers=2)))


def test_a_resumed_run_sees_the_rest(folder):
    data = speech(folder)
    assert_same_batches(list(loader(data))[5:], list(loader(data, start=5)))


def test_crops_and_masks_depend_on_seed_epoch_and_clip(folder):
    data = speech(folder)

    def one(seed: int, epoch: int, index: int) -> Batch:
        return data.pretrain_collate(MASK, seed)([data.pretrain_dataset(seed)[ClipKey(epoch, index, 1500, 1)]])

    reference = one(0, 0, 19)
    assert_same_batches([reference], [one(0, 0, 19)])
    for other in (one(1, 0, 19), one(0, 1, 19), one(0, 0, 18)):
        assert not torch.equal(other.inputs, reference.inputs)
        assert not torch.equal(other.mask.mask, reference.mask.mask)


def test_a_clips_crop_and_masks_do_not_depend_on_its_companions(folder):
    data = speech(folder)
    dataset, collate = data.pretrain_dataset(0), data.pretrain_collate(MASK, 0)
    keys = [ClipKey(2, index, 1600, 3) for index in (4, 0, 9)]
    together, alone = collate([dataset[key] for key in keys]), collate([dataset[keys[2]]])
    assert together.sample_ids.tolist() == [4, 0, 9]
    assert torch.equal(together.inputs[2], alone.inputs[0])
    assert torch.equal(together.mask.mask[4:], alone.mask.mask)


def test_a_crop_is_a_stretch_of_the_clip_which_is_normalised_as_a_whole(folder):
    data = speech(folder)
    clip = torch.from_numpy(data.train.load(19))
    whole = (clip - clip.mean()) / (clip.var(unbiased=False) + 1e-5).sqrt()
    starts = []
    for epoch in range(40):
        view = data.pretrain_dataset(0)[ClipKey(epoch, 19, 1600, 1)].inputs
        distances = (whole.unfold(0, 1600, 1) - view).abs().amax(1)
        assert distances.min() < 1e-4
        starts.append(int(distances.argmin()))
    last = len(clip) - 1600
    assert min(starts) < 0.2 * last
    assert 0.8 * last < max(starts) <= last
    full = data.pretrain_dataset(0)[ClipKey(0, 19, len(clip), 1)].inputs
    torch.testing.assert_close(full, whole, atol=1e-4, rtol=0)


def test_workers_may_be_spawned(folder):
    data = speech(folder)
    dataset, collate = pickle.loads(pickle.dumps((data.pretrain_dataset(3), data.pretrain_collate(MASK, 3))))
    key = ClipKey(0, 7, 1600, 1)
    expected = data.pretrain_collate(MASK, 3)([data.pretrain_dataset(3)[key]])
    assert_same_batches([collate([dataset[key]])], [expected])


def test_fewer_clips_than_a_batch_holds(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.wav", 1600 + i, i)
    batches = list(loader(speech(tmp_path, pool_size=8), steps=3))
    assert [sorted(set(batch.sample_ids.tolist())) for batch in batches] == [[0, 1]] * 3
    assert torch.unique(batches[0].inputs, dim=0).shape[0] > 1


def test_a_bad_clip_is_replaced_by_the_next_that_is_long_enough(damaged):
    dataset = damaged.pretrain_dataset(0)
    replaced = dataset[ClipKey(7, 1, 3200, 5)]
    assert replaced.key == (7, 4)
    assert replaced.step_size == 5
    assert [entry.partition(": ")[0] for entry in replaced.skipped] == ["1.flac", "2.flac"]
    assert all("not readable audio" in entry for entry in replaced.skipped)
    assert torch.equal(replaced.inputs, dataset[ClipKey(7, 4, 3200, 5)].inputs)
    shorter = dataset[ClipKey(7, 1, 1600, 5)]
    assert (shorter.key, shorter.inputs.shape) == ((7, 3), (1600,))
    batch = damaged.pretrain_collate(MASK, 0)([dataset[ClipKey(0, i, 3200, 4)] for i in (1, 2, 4, 5)])
    assert batch.sample_ids.tolist() == [4, 4, 4, 5]
    assert batch.inputs.shape == (4, 3200)
    assert batch.step_size == 4
    assert [entry.partition(": ")[0] for entry in batch.skipped] == ["1.flac", "2.flac", "2.flac"]


def test_bad_clips_change_no_length_and_are_the_same_for_any_number_of_workers(damaged):
    alone = list(loader(damaged, seconds=0.7, steps=8))
    assert {entry.partition(": ")[0] for batch in alone for entry in batch.skipped} == {"1.flac", "2.flac"}
    assert not {1, 2} & {i for batch in alone for i in batch.sample_ids.tolist()}
    assert_same_batches(alone, list(loader(damaged, seconds=0.7, steps=8, workers=2)))


def test_the_search_for_a_good_clip_goes_round(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.flac", 3200, i)
    damage(tmp_path / "2.flac")
    dataset = speech(tmp_path).pretrain_dataset(0)
    assert dataset[ClipKey(0, 2, 3200, 1)].key == (0, 0)
    for i in range(2):
        damage(tmp_path / f"{i}.flac")
    with pytest.raises(BadSample, match=r"3 samples in a row cannot be read, from 1\.flac: .* to 0\.flac: "):
        dataset[ClipKey(0, 1, 3200, 1)]


def test_a_clip_shorter_than_listed_is_replaced_and_named(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.wav", 2000 + 1000 * i, i)
    (tmp_path / "train.tsv").write_text(".\n0.wav\t3000\n1.wav\t3000\n")
    data = audio_manifest(str(tmp_path / "train.tsv"), conv_layers=CONVS, min_seconds=0.1, max_seconds=0.3)
    sample = data.pretrain_dataset(0)[ClipKey(0, 0, 2500, 1)]
    assert (sample.key, sample.inputs.shape) == ((0, 1), (2500,))
    assert sample.skipped == ("0.wav: holds 2000 samples, fewer than the 2500 it was listed for",)
    assert data.pretrain_dataset(0)[ClipKey(0, 0, 1500, 1)].skipped == ()


def test_too_many_bad_files_stop_the_run_before_it_starts(tmp_path, caplog):
    for i in range(9):
        save(tmp_path / f"{i}.wav", 3200, i)
    (tmp_path / "9.wav").write_bytes(b"")
    with pytest.raises(TooManyBadSamples, match=r"1 of the data set's 10 .*max_bad_fraction=0") as error:
        speech(tmp_path, max_bad_fraction=0)
    assert "9.wav: empty file" in str(error.value)
    with caplog.at_level(logging.WARNING):
        data = speech(tmp_path, max_bad_fraction=0.1)
    assert len(data.train) == 9
    assert "skipped 9.wav: empty file" in caplog.text
    counter = data.bad_sample_counter()
    with pytest.raises(TooManyBadSamples, match="3 of the data set's 9 "):
        counter.update([f"{i}.wav: not readable audio" for i in range(3)])


def test_short_clips_are_reported_but_not_bad(tmp_path, caplog):
    for i in range(9):
        save(tmp_path / f"{i}.wav", 100 if i < 7 else 3200, i)
    with caplog.at_level(logging.WARNING):
        data = speech(tmp_path, max_bad_fraction=0.0)
    assert len(data.train) == 2
    assert "left out 7 of 9 clips shorter than min_seconds=0.05: 0.wav, 1.wav, 2.wav, 3.wav, 4.wav, ..." in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("seconds", "micro", "world_size", "expected"),
    [
        (3.0, None, 1, (3.0, 1)),
        (3.0, None, 2, (1.5, 1)),
        (3.0, 1.0, 1, (1.0, 3)),
        (3.0, 1.0, 2, (0.75, 2)),
        (3.0, 5.0, 1, (3.0, 1)),
        (3.0, 2.0, 1, (1.5, 2)),
    ],
)
def test_split_batch(folder, seconds, micro, world_size, expected):
    split = speech(folder).split_batch(seconds, micro, world_size)
    assert (split.micro_batch_size, split.accumulate, split.world_size) == (*expected, world_size)
    sampler = speech(folder).pretrain_sampler(0, split, num_batches=split.accumulate)
    assert sampler.step_length == seconds * RATE


def test_split_batch_errors(folder):
    data = speech(folder)  # up to 0.3 s
    message = r"global_batch_size=0\.5 seconds are 0\.25 for each of 2 devices, .* choose at least 0\.6, or lower"
    with pytest.raises(ValueError, match=message):
        data.split_batch(0.5, None, 2)
    with pytest.raises(ValueError, match=r"micro_batch_size=0\.2 seconds: a clip takes up to 0\.3; choose at least"):
        data.split_batch(1.0, 0.2, 1)
    # 5 of the longest clips for 2 devices x 3 micro-batches would leave one without.
    with pytest.raises(ValueError, match=r"micro_batch_size=0\.3 seconds: 1\.5 in .* 2 devices x 3 .* at least 1, or"):
        data.split_batch(1.5, 0.3, 2)
    assert data.split_batch(1.5, 0.4, 2).accumulate == 2
    assert data.split_batch(0.3, 0.3, 1) == BatchSplit(0.3, 1, 1)
    assert speech(folder, max_seconds=1.0).split_batch(0.385, None, 1) == BatchSplit(0.385, 1, 1)


def test_sizes(folder):
    data = speech(folder)
    assert data.size == pytest.approx(sum(min(seconds, 0.3) for seconds in SECONDS), abs=1e-3)
    assert data.token_grid == (num_frames(4800, CONVS),)
    assert speech(folder, max_seconds=1.0).token_grid == (num_frames(int(0.385 * RATE), CONVS),)
    assert (data.batch_unit, data.modality, data.streaming, data.assets()) == ("seconds", "speech", False, {})


def test_masks_that_do_not_fit_the_shortest_or_longest_clip_fail_early(folder):
    frames = num_frames(1600, CONVS)
    with pytest.raises(ValueError, match=rf"mask_length={frames + 1}: the token grid is {frames};"):
        speech(folder).pretrain_collate(SpanMask(mask_length=frames + 1), 0)
    speech(folder).pretrain_collate(SpanMask(mask_length=frames), 0)


@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(1, 3000),
    layers=st.lists(st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 6)), max_size=3),
)
def test_frames_are_what_unpadded_convolutions_make(num_samples, layers):
    x = torch.arange(num_samples)
    for _, kernel_size, stride in layers:
        x = x.unfold(0, kernel_size, stride)[:, 0] if len(x) >= kernel_size else x[:0]
    assert num_frames(num_samples, layers) == len(x)


def test_a_crop_that_holds_no_frame_is_refused():
    clips = AudioClips(lambda path: b"", [Clip("a", RATE)], RATE, 1)
    with pytest.raises(ValueError, match=r"crop_seconds=0\.001: such a clip holds no frame"):
        SpeechData(train=clips, conv_layers=CONVS, crop_seconds=0.001)


def test_the_encoder_says_what_a_frame_is():
    with pytest.raises(ValueError, match=r"data\.conv_layers: a value is missing"):
        build({"_target_": f"{FACTORIES}.samples_speech"}, key="data")


def test_a_crop_may_begin_at_every_place_that_leaves_room() -> None:
    starts = [crop_start(12, 10, np.random.default_rng(seed)) for seed in range(60)]
    assert set(starts) == {0, 1, 2}
    assert crop_start(10, 10, np.random.default_rng(0)) == 0
    with pytest.raises(BadSample, match="holds 9 samples, fewer than the 10"):
        crop_start(9, 10, np.random.default_rng(0))
