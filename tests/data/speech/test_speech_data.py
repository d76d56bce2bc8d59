"""Clips of speech as batches: lengths, crops, masks, padding, bad files, configuration."""

from __future__ import annotations

import inspect
import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from d2v.arguments import parameters
from d2v.data.bad_samples import BadSample, TooManyBadSamples
from d2v.data.batching import BatchSplit
from d2v.data.eval_loader import eval_loader
from d2v.data.keys import ClipKey
from d2v.data.speech.batches import crop_start
from d2v.data.speech.clips import AudioClips, Clip
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import (
    HFSpeechOptions,
    audio_folder,
    audio_manifest,
    hf_audio,
    librispeech,
    samples_speech,
)
from d2v.interop.build import build
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.objective.masking import SpanMask
from d2v.types import Batch, num_frames

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

CONVS = ((4, 10, 5), (4, 8, 4), (8, 4, 2))  # a frame every 40 samples, from 105
MASK = SpanMask(num_masks=2, mask_ratio=0.5, mask_length=3)
RATE = 16000


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32) + 0.1


def save(path: Path, num_samples: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(num_samples, seed), RATE)
    return path


def damage(path: Path) -> None:
    """Cut a file behind its header."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SECONDS = [round(0.1 + 0.015 * i, 3) for i in range(20)]  # 0.1 to 0.385


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty clips, named by label and take, shortest first."""
    root = tmp_path_factory.mktemp("clips")
    for i, seconds in enumerate(SECONDS):
        save(root / f"{i // 2:02}_{'ab'[i % 2]}.flac", int(seconds * RATE), i)
    return root


FACTORIES = "d2v.data.speech.factories"
SIZES = {"conv_layers": CONVS, "min_seconds": 0.05, "max_seconds": 0.3, "pool_size": 20}


def speech(root: Path, **options) -> SpeechData:
    return audio_folder(str(root), **(SIZES | options))


def loader(
    data: SpeechData, *, seconds: float = 1.0, steps: int = 12, start: int = 0, workers: int = 0, seed: int = 3, **plan
):
    parts = plan.get("world_size", 1) * plan.get("accumulate", 1)
    split = BatchSplit(seconds / parts, plan.get("accumulate", 1), plan.get("world_size", 1))
    plan = {"num_batches": steps * split.accumulate, "start_batch": start * split.accumulate} | plan
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=data.pretrain_sampler(seed, split, **plan),
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )


def assert_same_batches(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.sample_ids, y.sample_ids)
        assert torch.equal(x.mask.mask, y.mask.mask)
        assert (x.skipped, x.step_size) == (y.skipped, y.step_size)


# --- batches to pretrain on


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


# --- bad clips


@pytest.fixture
def damaged(tmp_path) -> SpeechData:
    """Clips of 0.1, 0.2, ... s, the second and the third damaged, and a short one between the long ones."""
    for i, seconds in enumerate([0.1, 0.2, 0.2, 0.1, 0.3, 0.25]):
        save(tmp_path / f"{i}.flac", int(seconds * RATE), i)
    for i in (1, 2):
        damage(tmp_path / f"{i}.flac")
    return speech(tmp_path)


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


# --- evaluation


def encoder() -> Encoder:
    frontend = SpeechFrontend(16, 4, CONVS, pos_depth=2, pos_kernel_size=5, pos_groups=4)
    model = transformer_encoder({"speech": frontend}, 16, depth=2, num_heads=4, prenet_depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def test_padding_is_marked_and_changes_no_real_output(tmp_path):
    lengths = [1600, 4000, 1643, 105, 3999]
    for i, length in enumerate(lengths):
        save(tmp_path / f"{i}.wav", length, i)
    data = speech(tmp_path, min_seconds=105 / RATE)
    dataset, collate, model = data.eval_dataset("train"), data.eval_collate, encoder()
    batch = collate([dataset[i] for i in range(5)])
    frames = [num_frames(length, CONVS) for length in lengths]
    assert batch.inputs.shape == (5, 4000)
    assert batch.padding_mask.shape == (5, frames[1])
    assert batch.padding_mask.dtype == torch.bool
    assert (~batch.padding_mask).sum(1).tolist() == frames
    assert (batch.padding_mask.int().diff(dim=1) >= 0).all()  # at the end only
    with torch.no_grad():
        together = model(batch).x
        for i in range(5):
            alone = collate([dataset[i]])
            assert alone.padding_mask is None
            torch.testing.assert_close(together[i, : frames[i]], model(alone).x[0], atol=1e-5, rtol=0)


def test_evaluation_takes_whole_normalised_clips(folder):
    data = speech(folder, label_pattern=r"_([ab])")
    batch = data.eval_collate([data.eval_dataset("train")[i] for i in (19, 0, 7)])
    assert batch.inputs.shape == (3, int(0.385 * RATE))  # longer than max_seconds
    for row, i in zip(batch.inputs, (19, 0, 7), strict=True):
        clip = row[: data.train.lengths[i]]
        assert abs(clip.mean()) < 1e-5
        assert abs(clip.var(unbiased=False) - 1) < 1e-3
        assert not row[data.train.lengths[i] :].any()
    assert (batch.sample_ids.tolist(), batch.labels.tolist(), batch.mask) == ([19, 0, 7], [1, 0, 1], None)
    assert (batch.skipped, batch.step_size) == ((), None)


def test_evaluation_batches_hold_clips_of_about_one_length(tmp_path):
    lengths = [4000, 800, 3900, 820, 2000, 810]
    for i, length in enumerate(lengths):
        save(tmp_path / f"{i}.wav", length, i)
    batches = list(eval_loader(speech(tmp_path, min_seconds=0.05), "train", batch_size=2))
    assert [batch.sample_ids.tolist() for batch in batches] == [[1, 5], [3, 4], [2, 0]]
    assert [batch.inputs.shape[1] for batch in batches] == [810, 2000, 4000]


def test_clips_of_a_frame_more_or_less_need_no_padding_mask(tmp_path):
    for i, length in enumerate((1600, 1601)):
        save(tmp_path / f"{i}.wav", length)
    data = speech(tmp_path)
    batch = data.eval_collate([data.eval_dataset("train")[i] for i in range(2)])
    assert (batch.inputs.shape, batch.padding_mask) == ((2, 1601), None)


def test_clips_too_long_or_too_short_to_evaluate_are_skipped_and_named(tmp_path):
    for i, length in enumerate((1600, 8000, 8001, 104, 105, 3200)):
        save(tmp_path / "val" / f"{i}.flac", length, i)
    damage(tmp_path / "val" / "5.flac")
    save(tmp_path / "train" / "0.flac", 1600)
    data = speech(tmp_path / "train", val_root=str(tmp_path / "val"), eval_max_seconds=0.5)
    batches = list(DataLoader(data.eval_dataset("val"), batch_size=3, collate_fn=data.eval_collate))
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 1], [4]]
    assert batches[0].skipped == ("2.flac: 8001 samples, more than eval_max_seconds allows",)
    assert batches[1].skipped[0] == "3.flac: 104 samples do not hold one frame"
    assert batches[1].skipped[1].startswith("5.flac: not readable audio")
    assert batches[1].padding_mask is None
    nothing = data.eval_collate([data.eval_dataset("val")[2]])
    assert (len(nothing.inputs), len(nothing.sample_ids), nothing.padding_mask) == (0, 0, None)


def test_log_mels(folder):
    data = speech(folder, label_pattern=r"_([ab])")
    frames, ids = data.raw_frames("train")
    assert ids.tolist() == list(range(20))
    assert [x.shape for x in frames] == [(1 + length // 320, 40) for length in data.train.lengths]
    features, labels = data.raw("train")
    assert features.shape == (20, 80)
    assert features.dtype == torch.float32
    assert labels.tolist() == [0, 1] * 10
    torch.testing.assert_close(features[3], torch.cat([frames[3].mean(0), frames[3].std(0)]))


def test_log_mels_are_of_the_clips_that_can_be_read(damaged):
    frames, ids = damaged.raw_frames("train")
    assert (len(frames), ids.tolist()) == (4, [0, 3, 4, 5])
    features, labels = damaged.raw("train")
    assert features.isfinite().all()
    assert labels.tolist() == [-1] * 4


# --- how a global batch is split


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


# --- factories


def test_the_shipped_samples():
    data = samples_speech(conv_layers=CONVS)
    assert (len(data.train), len(data.val)) == (493, 56)  # two clips are shorter than half a second
    assert data.probe_train is data.train
    assert data.train.has_transcripts
    assert data.val.has_transcripts
    assert not {data.train.name(i) for i in range(493)} & {data.val.name(i) for i in range(56)}
    assert 15 * 60 < data.size < 17 * 60
    assert data.train.lengths.sum() / RATE > 20 * 60
    batch = next(iter(loader(data, seconds=8.0, steps=1)))
    assert 4 * RATE < batch.inputs.numel() <= 8 * RATE
    assert data.eval_dataset("val")[0].inputs.shape == (data.val.lengths[0],)


def test_folders_have_labels_and_groups_if_asked(folder, tmp_path):
    data = speech(folder, label_pattern=r"_([ab])", group_pattern=r"^(\d+)_")
    assert data.class_names == ("a", "b")
    assert data.train.groups[:4] == ["00", "00", "01", "01"]
    assert data.probe_train is data.train
    plain = speech(folder)
    assert (plain.probe_train, plain.class_names, plain.train.groups) == (None, None, None)
    assert len(plain.eval_dataset("train")) == 20
    save(tmp_path / "val" / "x_b.wav", 160)
    held_out = speech(folder, val_root=str(tmp_path / "val"), label_pattern=r"_([ab])")
    assert held_out.val.label(0) == 1
    save(tmp_path / "val" / "x_c.wav", 1600)
    with pytest.raises(ValueError, match=r"val_root=.*: labels \['c'\] are not in the training set"):
        speech(folder, val_root=str(tmp_path / "val"), label_pattern=r"_([abc])")


def test_clips_to_evaluate_on_are_not_trained_on(folder, tmp_path):
    save(tmp_path / "a" / "0_a.wav", 1600)
    save(tmp_path / "held" / "1_a.wav", 1600, 1)
    (tmp_path / "linked").symlink_to(tmp_path / "held")
    for val_root in ("held", "linked"):
        data = speech(tmp_path, val_root=str(tmp_path / val_root), label_pattern=r"_([ab])")
        assert [data.train.name(i) for i in range(len(data.train))] == ["a/0_a.wav"]
        assert len(data.val) == 1
        assert any(
            line.endswith(f"both here and in {tmp_path / val_root}: only evaluated on") for line in data.describe()
        )
    with pytest.raises(ValueError, match=r"val_root=.*: holds all clips of root=.* too"):
        speech(folder, val_root=str(folder))


def test_folders_named_as_splits_are_named_where_all_is_read(tmp_path):
    for name in ("train", "Valid", "test"):
        save(tmp_path / name / "0.wav", 1600)
    assert any("read as all the others: Valid, test; " in line for line in speech(tmp_path).describe())
    assert len(speech(tmp_path / "train").describe()) == 1


def test_librispeech_takes_a_part_or_a_list_of_parts(tmp_path):
    for part, speaker in (("train-a", 1), ("train-b", 2), ("dev", 3)):
        chapter = tmp_path / "LibriSpeech" / part / str(speaker) / "7"
        for i, length in enumerate((3200, 160)):
            save(chapter / f"{speaker}-7-{i:04}.flac", length, i)
        lines = [f"{speaker}-7-{i:04} SPEAKER {speaker}\n" for i in range(2)]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3}
    data = librispeech(str(tmp_path), train="train-a", val="dev", **options)
    assert (len(data.train), len(data.val)) == (1, 2)  # short clips are left out of training only
    assert data.probe_train is data.train
    assert (data.train.transcript(0), data.val.transcript(1)) == ("SPEAKER 1", "SPEAKER 3")
    assert data.pretrain_dataset(0)[ClipKey(0, 0, 3200, 1)].inputs.shape == (3200,)
    both = librispeech(str(tmp_path), train=["train-b", "train-a"], val=None, probe_train=["train-a"], **options)
    assert [both.train.transcript(i) for i in range(2)] == ["SPEAKER 2", "SPEAKER 1"]
    assert (len(both.probe_train), both.val) == (2, None)
    for key, parts in (("train", {"train": "x"}), ("val", {"val": ["x"]}), ("probe_train", {"probe_train": "x"})):
        with pytest.raises(FileNotFoundError, match=rf"{key}=x: .*download=true"):
            librispeech(str(tmp_path), **({"train": "train-a", "val": None} | parts), **options)
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such folder"):
        librispeech(str(tmp_path / "gone"), train="train-a", val=None, **options)


def test_librispeech_fetches_only_what_is_missing(tmp_path, monkeypatch):
    import torchaudio.datasets

    fetched = []

    def fetch(root, url, download):
        if url != "dev":
            raise RuntimeError("no network")
        fetched.append(url)
        chapter = Path(root) / "LibriSpeech" / url / "3" / "7"
        save(chapter / "3-7-0000.flac", 3200)
        (chapter / "3-7.trans.txt").write_text("3-7-0000 HELLO\n")

    monkeypatch.setattr(torchaudio.datasets, "LIBRISPEECH", fetch)
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3, "download": True}
    for _ in range(2):
        data = librispeech(str(tmp_path / "new"), train="dev", val="dev", **options)
    assert fetched == ["dev"]
    assert data.val.transcript(0) == "HELLO"
    assert [p.name for p in (tmp_path / "new" / "LibriSpeech").iterdir() if not p.name.endswith(".lock")] == ["dev"]
    message = r"train=tset: could not be fetched \(no network\); .*root="
    with pytest.raises(FileNotFoundError, match=message):
        librispeech(str(tmp_path / "new"), train=["dev", "tset"], val=None, **options)


def test_librispeech_half_unpacked_is_not_there(tmp_path, monkeypatch):
    """Whoever was interrupted, or is still at it, leaves nothing that looks like a part."""
    import torchaudio.datasets

    def fetch(root, url, download):
        chapter = Path(root) / "LibriSpeech" / url / "3" / "7"
        if not interrupted:
            assert not chapter.exists()
        for number in range(2):
            save(chapter / f"3-7-000{number}.flac", 3200)
            if interrupted and number == 0:
                raise KeyboardInterrupt
        (chapter / "3-7.trans.txt").write_text("3-7-0000 HELLO\n3-7-0001 YOU\n")

    monkeypatch.setattr(torchaudio.datasets, "LIBRISPEECH", fetch)
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.3, "download": True}
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        librispeech(str(tmp_path), train="dev", val=None, **options)
    interrupted = False
    assert len(librispeech(str(tmp_path), train="dev", val=None, **options).train) == 2


def test_manifest(folder, tmp_path):
    lines = [f"{i // 2:02}_{'ab'[i % 2]}.flac\t{int(seconds * RATE)}" for i, seconds in enumerate(SECONDS)]
    (tmp_path / "train.tsv").write_text("\n".join([str(folder), *lines]))
    options = {"conv_layers": CONVS, "min_seconds": 0.05, "max_seconds": 0.3, "pool_size": 20}
    data = audio_manifest(str(tmp_path / "train.tsv"), **options)
    assert_same_batches(list(loader(data, steps=3)), list(loader(speech(folder), steps=3)))
    assert (data.probe_train, data.val) == (None, None)
    (tmp_path / "empty.tsv").write_text(".\n")
    with pytest.raises(ValueError, match=r"manifest=.*empty\.tsv: lists no file"):
        audio_manifest(str(tmp_path / "empty.tsv"), **options)


def test_clips_to_probe_only(folder):
    clips = speech(folder).train
    data = SpeechData(train=None, probe_train=clips, val=clips, conv_layers=CONVS)
    assert not data.streaming
    assert len(data.eval_dataset("train")) == 20
    with pytest.raises(ValueError, match="there are no clips to train on"):
        data.pretrain_dataset(0)


def test_there_may_be_nothing_to_evaluate(folder):
    with pytest.raises(ValueError, match="split 'val': this data has no such clips"):
        speech(folder).eval_dataset("val")
    with pytest.raises(ValueError, match="split 'val': this data has no such clips"):
        speech(folder).raw("val")
    with pytest.raises(ValueError, match=r"streaming=false: use pretrain_dataset"):
        speech(folder).pretrain_stream(MASK, 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_seconds": 0.0}, r"data\.min_seconds=0\.0: give a number above 0"),
        ({"min_seconds": 0.4}, r"data\.min_seconds=0\.4, data\.max_seconds=0\.3"),
        ({"max_seconds": float("nan")}, r"data\.max_seconds=nan"),
        ({"min_seconds": 0.001}, r"data\.min_seconds=0\.001: such a clip holds no frame; raise it"),
        ({"max_bad_fraction": 1.5}, r"data\.max_bad_fraction=1\.5: give a number from 0 to 1"),
        ({"max_bad_fraction": -0.1}, r"data\.max_bad_fraction=-0\.1"),
        ({"min_seconds": 0.39, "max_seconds": 0.5}, r"root=.*: none of 20 clips can be used: .*20 are shorter"),
        ({"label_pattern": "x"}, r"data\.label_pattern=x: put parentheses"),
        ({"group_pattern": "(x)"}, r"data\.group_pattern=\(x\): does not match 00_a\.flac"),
        ({"val_root": "/no/such"}, r"data\.val_root=/no/such: no such folder"),
    ],
)
def test_errors_name_the_key(folder, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _ = build({"_target_": f"{FACTORIES}.audio_folder", "root": str(folder), **SIZES, **change}, key="data").size


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such folder; set root"):
        speech(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"root=.*: no audio file there"):
        speech(tmp_path)
    with pytest.raises(ValueError, match=r"root=.*notes\.txt: not a folder"):
        speech(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["crop_seconds", "shuffle_buffer"])
def test_settings_of_streams_are_checked(name):
    with pytest.raises(ValueError, match=rf"data\.{name}=0: give a"):
        build({"_target_": f"{FACTORIES}.hf_audio", "path": "a", "conv_layers": CONVS, name: 0}, key="data")


def test_a_crop_that_holds_no_frame_is_refused():
    clips = AudioClips(lambda path: b"", [Clip("a", RATE)], RATE, 1)
    with pytest.raises(ValueError, match=r"crop_seconds=0\.001: such a clip holds no frame"):
        SpeechData(train=clips, conv_layers=CONVS, crop_seconds=0.001)


def test_the_encoder_says_what_a_frame_is():
    with pytest.raises(ValueError, match=r"data\.conv_layers: a value is missing"):
        build({"_target_": f"{FACTORIES}.samples_speech"}, key="data")


@pytest.mark.parametrize("factory", [samples_speech, librispeech, audio_folder, audio_manifest, hf_audio])
def test_configuration_files_spell_out_every_keyword(factory, data_config):
    config = data_config(factory.__name__)
    keywords = parameters(factory)
    options = HFSpeechOptions.__annotations__.keys() & keywords.keys()
    assert config.pop("_target_") == f"{factory.__module__}.{factory.__name__}"
    assert set(config) == set(keywords)
    made = samples_speech(conv_layers=CONVS) if factory is samples_speech else SpeechData
    for name in config:
        default = getattr(made, name) if name in options else keywords[name].default
        if name not in ("probe_train", "conv_layers") and default is not inspect.Parameter.empty:
            assert config[name] == default, name


def test_configured_lists_are_read(folder):
    convs = OmegaConf.create([list(layer) for layer in CONVS])
    data = speech(folder, conv_layers=convs)
    assert data.conv_layers == CONVS
    assert data == data
    assert next(iter(loader(data, steps=1))).inputs.ndim == 2


def test_a_crop_may_begin_at_every_place_that_leaves_room() -> None:
    starts = [crop_start(12, 10, np.random.default_rng(seed)) for seed in range(60)]
    assert set(starts) == {0, 1, 2}
    assert crop_start(10, 10, np.random.default_rng(0)) == 0
    with pytest.raises(BadSample, match="holds 9 samples, fewer than the 10"):
        crop_start(9, 10, np.random.default_rng(0))
