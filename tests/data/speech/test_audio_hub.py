"""Hugging Face data sets of audio in local directories, map-style and streaming."""

from __future__ import annotations

import io
import logging
import pickle
import sys

import numpy as np
import pytest
import torch
from same_batches import assert_same_batches
from torch.utils.data import DataLoader

from d2v.data.bad_samples import BadSample
from d2v.data.batching import BatchSplit
from d2v.data.keys import ClipKey
from d2v.data.samplers import BatchPlan
from d2v.data.speech.batches import normalize
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import hf_audio
from d2v.data.speech.hub import HFAudioStream, hf_clips
from d2v.data.streams import StreamBatches
from d2v.interop.build import build
from d2v.objective.masking import SpanMask
from d2v.types import num_frames

datasets = pytest.importorskip("datasets")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

CONVS = ((4, 10, 5), (4, 8, 4), (8, 4, 2))
MASK = SpanMask(num_masks=2, mask_ratio=0.5, mask_length=3)
ROWS = 23
BAD = (4, 5)  # rows that do not decode
SHORT = (9, 17)  # rows of 1,000 samples
RATE = 16000


def length(row: int) -> int:
    return 1000 if row in SHORT else 1600 + 50 * row


def waveform(row: int) -> np.ndarray:
    return np.random.default_rng(row).uniform(-0.5, 0.5, length(row)).astype(np.float32)


def wav(row: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform(row), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def rows(count: int = ROWS) -> list[dict]:
    return [{"bytes": b"" if i in BAD else wav(i), "path": None} for i in range(count)]


def table(count: int = ROWS) -> datasets.Dataset:
    columns = {"id": list(range(count)), "speech": rows(count), "text": [f"row {i}" for i in range(count)]}
    return datasets.Dataset.from_dict(columns).cast_column("speech", datasets.Audio(decode=False))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def parquet(tmp_path):
    """A directory as the Hub has them: two files of the train split, one of validation."""
    root = tmp_path / "set"
    root.mkdir()
    whole = table()
    whole.select(range(10)).to_parquet(root / "train-00000-of-00002.parquet")
    whole.select(range(10, ROWS)).to_parquet(root / "train-00001-of-00002.parquet")
    whole.select(range(4)).to_parquet(root / "validation-00000-of-00001.parquet")
    return str(root)


def speech(path: str, **options) -> SpeechData:
    options = {"conv_layers": CONVS, "min_seconds": 0.1, "max_seconds": 0.15, "max_bad_fraction": 0.1} | options
    return hf_audio(path, **options)


# --- map-style


def test_parquet(parquet, caplog):
    with caplog.at_level(logging.WARNING):
        data = speech(parquet, text_column="text", val_split="validation")
    kept = [i for i in range(ROWS) if i not in BAD + SHORT]
    assert data.train.lengths.tolist() == [length(i) for i in kept]
    assert [data.train.transcript(i) for i in range(len(data.train))] == [f"row {i}" for i in kept]
    np.testing.assert_array_equal(data.train.load(6), waveform(kept[6]))
    assert (len(data.val), data.val.transcript(3), data.streaming) == (4, "row 3", False)
    assert data.probe_train is data.train
    for row in BAD:
        assert f"skipped {row}: empty file" in caplog.text
    assert "left out 2 of 23 clips shorter than min_seconds=0.1: 9, 17" in caplog.text
    untold = speech(parquet)
    assert (untold.probe_train, untold.val, untold.train.has_transcripts) == (None, None, False)


def test_batches_of_a_data_set(parquet):
    data = speech(parquet, pool_size=19)
    sampler = data.pretrain_sampler(3, BatchSplit(1.0, 1, 1), num_batches=6)

    def batches(workers: int) -> list:
        return list(
            DataLoader(
                data.pretrain_dataset(3),
                batch_sampler=sampler,
                collate_fn=data.pretrain_collate(MASK, 3),
                num_workers=workers,
            )
        )

    alone = batches(0)
    assert all(RATE / 2 < batch.inputs.numel() <= RATE for batch in alone)
    for x, y in zip(alone, batches(2), strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.sample_ids, y.sample_ids)


def test_workers_may_be_spawned(parquet):
    dataset = speech(parquet).pretrain_dataset(0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[ClipKey(0, 7, 1600, 1)].inputs, dataset[ClipKey(0, 7, 1600, 1)].inputs)


def test_saved_to_disk(tmp_path):
    table().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table(), "val": table(3)}).save_to_disk(tmp_path / "several")
    assert len(speech(str(tmp_path / "one")).train) == ROWS - 4
    assert len(speech(str(tmp_path / "several"), val_split="val").val) == 3
    assert len(list(HFAudioStream(str(tmp_path / "several"), "train", None, RATE))) == ROWS
    with pytest.raises(ValueError, match=r"split=test: no such split of .*it has train, val"):
        speech(str(tmp_path / "several"), split="test")


def test_a_row_may_be_a_path(parquet, tmp_path):
    (tmp_path / "0.wav").write_bytes(wav(0))
    stream = HFAudioStream(parquet, "train", None, RATE)
    np.testing.assert_array_equal(stream.decode({"bytes": None, "path": str(tmp_path / "0.wav")}), waveform(0))
    with pytest.raises(BadSample, match="No such file"):
        stream.decode({"bytes": None, "path": str(tmp_path / "gone.wav")})


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_without_hugging_face_metadata(tmp_path, streaming):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"audio": rows(4), "text": ["x"] * 4}), tmp_path / "set" / "train.parquet")
    data = speech(str(tmp_path / "set"), streaming=streaming)
    if streaming:
        assert [len(data.train.decode(record)) for record in data.train] == [length(i) for i in range(4)]
    else:
        assert data.train.lengths.tolist() == [length(i) for i in range(4)]


def test_other_rates_are_resampled(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((2001, 2)), 8000, format="FLAC")
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict({"audio": [{"bytes": buffer.getvalue(), "path": None}]})
    table.to_parquet(tmp_path / "set" / "train.parquet")
    clips = hf_clips(str(tmp_path / "set"), "train", None, None, RATE, 1)
    assert clips.lengths.tolist() == [4002] == [len(clips.load(0))]
    stream = HFAudioStream(str(tmp_path / "set"), "train", None, RATE)
    assert [stream.decode(record).shape for record in stream] == [(4002,)]


@pytest.mark.parametrize("record", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
def test_a_row_without_audio_is_a_bad_sample(parquet, record):
    with pytest.raises(BadSample, match=r"^no audio in this row$"):
        HFAudioStream(parquet, "train", None, RATE).decode(record)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_found_or_asked_for(tmp_path, streaming):
    audio = table(4)
    two = audio.add_column("copy", audio["speech"][:]).cast_column("copy", datasets.Audio(decode=False))
    two.save_to_disk(tmp_path / "two")
    message = r"audio_column=null: .* has 2 columns of audio; set audio_column to one of speech, copy"
    with pytest.raises(ValueError, match=message):
        speech(str(tmp_path / "two"), streaming=streaming)
    assert speech(str(tmp_path / "two"), streaming=streaming, audio_column="copy").train is not None
    audio.select_columns(["id"]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"audio_column=null: .* has 0 columns of audio; .* to one of id"):
        speech(str(tmp_path / "none"), streaming=streaming)
    with pytest.raises(ValueError, match=r"audio_column=audio: .* has the columns id, speech, text, copy"):
        speech(str(tmp_path / "two"), streaming=streaming, audio_column="audio")


def test_errors(parquet, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"text_column=words: .* has the columns id, speech, text"):
        speech(parquet, text_column="words")
    with pytest.raises(FileNotFoundError, match=r"path=\./gone: no such directory"):
        speech("./gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"path=.*empty: neither a local directory of parquet"):
        speech(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"split=tset: no such split"):
        speech(parquet, split="tset")
    with pytest.raises(ValueError, match=r"path=.*set: none of 23 clips can be used: 2 cannot .*21 are shorter"):
        _ = speech(parquet, min_seconds=1.0, max_seconds=2.0).size
    for name, value in (("crop_seconds", 0.0), ("crop_seconds", -1.0), ("shuffle_buffer", 0)):
        node = {
            "_target_": "d2v.data.speech.factories.hf_audio",
            "path": parquet,
            "conv_layers": [[8, 4, 4]],
            name: value,
        }
        with pytest.raises(ValueError, match=rf"data\.{name}={value}: give a"):
            build(node, key="data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"path=.*: needs the package datasets; pip install datasets"):
        speech(parquet)


# --- streaming

CROP = 1200


@pytest.fixture
def streamed(parquet) -> SpeechData:
    return speech(parquet, streaming=True, crop_seconds=CROP / RATE, shuffle_buffer=8)


def stream(data: SpeechData, **plan: int) -> StreamBatches:
    return data.pretrain_stream(MASK, 5, BatchPlan(**({"micro_batch_size": 4, "num_batches": 16} | plan)))


def batches(data: SpeechData, workers: int = 0, **plan: int) -> list:
    return list(DataLoader(stream(data, **plan), batch_size=None, num_workers=workers))


def test_a_stream_gives_crops_of_one_length(streamed):
    assert (streamed.streaming, streamed.size, streamed.class_names, streamed.probe_train) == (True, None, None, None)
    assert streamed.token_grid == (num_frames(CROP, CONVS),)
    for batch in batches(streamed):
        assert batch.inputs.shape == (4, CROP)
        assert batch.mask.mask.shape == (8, num_frames(CROP, CONVS))
        assert (batch.modality, batch.padding_mask, batch.labels, batch.step_size) == ("speech", None, None, None)
        for view, row in zip(batch.inputs, batch.sample_ids.tolist(), strict=True):
            whole = normalize(waveform(row))
            assert (whole.unfold(0, CROP, 1) - view).abs().amax(1).min() < 1e-5


def test_rows_too_short_or_bad_are_skipped_and_named(streamed, parquet):
    found = batches(streamed, num_batches=3 * ROWS, micro_batch_size=1)
    epochs = torch.cat([batch.sample_ids for batch in found]).reshape(3, ROWS).tolist()
    for epoch in epochs:
        assert set(epoch) == set(range(ROWS)) - {*BAD, *SHORT}  # the row after it takes a bad row's place
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    named = {entry for batch in found for entry in batch.skipped}
    assert named == {f"{parquet}/train[{i}]: empty file" for i in BAD} | {
        f"{parquet}/train[{i}]: too short: 1000 samples, crop_seconds takes {CROP}" for i in SHORT
    }


def test_a_buffer_of_one_keeps_the_order(parquet):
    data = speech(parquet, streaming=True, crop_seconds=CROP / RATE, shuffle_buffer=1)
    ids = torch.cat([batch.sample_ids for batch in batches(data, num_batches=3)])
    assert ids.tolist() == [0, 1, 2, 3, 6, 6, 6, 7, 8, 10, 10, 11]


def test_the_number_of_workers_changes_nothing(streamed):
    assert_same_batches(batches(streamed), batches(streamed, workers=2))


def test_a_resumed_stream_goes_on_where_it_stopped(streamed):
    whole = batches(streamed)
    for start in (1, 6, 13):  # 13 * 4 rows: in the third epoch
        assert_same_batches(batches(streamed, start_batch=start), whole[start:])
    assert_same_batches(batches(streamed, start_batch=7, workers=2), whole[7:])
    assert batches(streamed, start_batch=16) == []


def test_ranks_share_the_stream(streamed):
    whole = batches(streamed, micro_batch_size=8, num_batches=4)
    ranks = [batches(streamed, num_batches=4, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[step].inputs for rank in ranks]), batch.inputs)
        assert torch.equal(torch.cat([rank[step].mask.mask for rank in ranks]), batch.mask.mask)


def test_crops_of_a_stream_differ_from_epoch_to_epoch(parquet):
    data = speech(parquet, streaming=True, crop_seconds=CROP / RATE, shuffle_buffer=1)
    first, second = (batches(data, num_batches=2 * ROWS, micro_batch_size=1)[i] for i in (0, ROWS))
    assert first.sample_ids.tolist() == second.sample_ids.tolist() == [0]
    assert not torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.mask.mask, second.mask.mask)


def test_a_stream_of_nothing_but_short_rows_says_so(parquet):
    data = speech(parquet, streaming=True, crop_seconds=1.0)
    with pytest.raises(BadSample, match=r"1000 samples in a row cannot be read, .*crop_seconds takes"):
        batches(data, num_batches=1)


def test_an_empty_stream_says_so(tmp_path):
    (tmp_path / "set").mkdir()
    table(0).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"the stream has no rows; check path=... and split=..."):
        batches(speech(str(tmp_path / "set"), streaming=True))


def test_batches_of_a_stream_are_split_into_crops(streamed):
    crop = CROP / RATE  # 0.075 s
    assert streamed.split_batch(1.0, None, 1) == BatchSplit(13, 1, 1)
    assert streamed.split_batch(1.0, None, 4) == BatchSplit(3, 1, 4)
    assert streamed.split_batch(1.0, 0.25, 1) == BatchSplit(1, 13, 1)
    assert streamed.split_batch(1.0, 0.25, 2) == BatchSplit(3, 2, 2)
    assert streamed.split_batch(crop, crop, 1) == BatchSplit(1, 1, 1)
    with pytest.raises(ValueError, match=r"global_batch_size=0\.1 seconds are 0\.05 .* a clip takes up to 0\.075"):
        streamed.split_batch(0.1, None, 2)
    with pytest.raises(ValueError, match=r"micro_batch_size=0\.05 seconds: a clip takes up to 0\.075"):
        streamed.split_batch(1.0, 0.05, 1)


def test_masks_that_do_not_fit_the_crops_fail_early(streamed):
    frames = num_frames(CROP, CONVS)
    with pytest.raises(ValueError, match=rf"mask_length={frames + 1}: the token grid is {frames};"):
        streamed.pretrain_stream(SpanMask(mask_length=frames + 1), 0, BatchPlan(micro_batch_size=1, num_batches=1))


def test_clips_beside_a_stream_can_be_evaluated(parquet):
    data = speech(parquet, streaming=True, val_split="validation", text_column="text", max_seconds=0.12)
    assert data.val.transcript(1) == "row 1"
    frames, ids = data.raw_frames("val")
    assert (ids.tolist(), [x.shape for x in frames]) == ([0, 1, 2, 3], [(1 + length(i) // 320, 40) for i in range(4)])
    features, labels = data.raw("val")
    assert (features.shape, labels.tolist()) == ((4, 80), [-1] * 4)
    with pytest.raises(ValueError, match="split 'train': this data has no such clips"):
        data.raw("train")
    assert data.bad_sample_counter().num_samples is None


def test_streams_and_clips_by_number_are_not_mixed_up(streamed, parquet):
    with pytest.raises(ValueError, match=r"streaming=true: use pretrain_stream"):
        streamed.pretrain_dataset(0)
    with pytest.raises(ValueError, match=r"streaming=true: use pretrain_stream"):
        streamed.pretrain_sampler(0, BatchSplit(1.0, 1, 1), num_batches=1)
    with pytest.raises(ValueError, match=r"streaming=false: use pretrain_dataset"):
        stream(speech(parquet))
