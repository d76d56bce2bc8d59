"""Clips to evaluate on: padding, order, lengths, log-mel features."""

from __future__ import annotations

import pytest
import torch
from short_clips import CONVS, RATE, damage, save, speech
from torch.utils.data import DataLoader

from d2v.data.eval_loader import eval_loader
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.types import num_frames

soundfile = pytest.importorskip("soundfile")

pytest.importorskip("torchaudio")


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
