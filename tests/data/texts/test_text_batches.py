"""Batches of packed text and of streams: contents, order, seeds, resuming, bad documents."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
import torch
from same_batches import assert_same_batches
from small_texts import MASK, files, loader
from torch.utils.data import DataLoader

from d2v.data.bad_samples import BadSample, BadSampleCounter, NoSamples, TooManyBadSamples
from d2v.data.keys import SampleKey
from d2v.data.loading import TrainLoader
from d2v.data.samplers import BatchPlan
from d2v.data.streams import StreamBatches
from d2v.types import Batch

pytest.importorskip("tokenizers")


@pytest.mark.parametrize("streaming", [False, True])
def test_batch_contents(root, streaming):
    data = files(root, streaming=streaming)
    batch = next(iter(loader(data)))
    assert (batch.modality, data.modality) == ("text", "text")
    assert batch.inputs.shape == (8, 16)
    assert batch.inputs.dtype == batch.sample_ids.dtype == torch.int64
    assert batch.inputs[:, 0].eq(data.tokenizer.bos_id).all()
    assert not batch.inputs[:, 1:].eq(data.tokenizer.bos_id).any()
    assert (batch.labels, batch.padding_mask, batch.skipped) == (None, None, ())
    assert batch.mask.mask.shape == (8 * 3, 16)
    assert batch.mask.mask.sum(1).eq(16 - int(16 * (1 - 0.42))).all()
    assert batch.mask.num_masks == 3
    assert data.token_grid == (16,)


def test_every_block_comes_once_an_epoch(root):
    data = files(root)
    found = torch.cat([batch.sample_ids for batch in loader(data, batches=2 * int(data.size), micro=1)])
    first, second = found.reshape(2, -1)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(int(data.size)))
    assert first.tolist() != second.tolist()


def test_rows_of_a_batch_are_the_packed_blocks(root):
    data = files(root)
    batch = next(iter(loader(data)))
    for row, i in zip(batch.inputs, batch.sample_ids.tolist(), strict=True):
        assert row.tolist() == data.train.load(i).tolist()


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(root, streaming):
    data = files(root, streaming=streaming, shuffle_buffer=32)
    assert_same_batches(list(loader(data)), list(loader(data, workers=2)))


def test_workers_may_be_spawned(root):
    data = files(root)
    dataset = data.pretrain_dataset(3)
    expected = dataset[SampleKey(0, 7)].inputs
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[SampleKey(0, 7)].inputs, expected)
    stream = files(root, streaming=True).pretrain_stream(MASK, 0, BatchPlan(micro_batch_size=4, num_batches=2))
    assert_same_batches(list(pickle.loads(pickle.dumps(stream))), list(stream))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_sees_the_rest(root, streaming):
    data = files(root, streaming=streaming, shuffle_buffer=32)
    whole = list(loader(data, batches=60))  # more than two epochs
    assert 2 * int(files(root).size) < 60 * 8
    for start in (1, 30, 59):
        assert_same_batches(list(loader(data, batches=60, start=start)), whole[start:])
    assert_same_batches(list(loader(data, batches=60, start=31, workers=2)), whole[31:])


def test_masks_depend_on_seed_epoch_and_block_and_blocks_do_not(root):
    data = files(root)

    def one(seed: int, epoch: int, index: int) -> Batch:
        return data.pretrain_collate(MASK, seed)([data.pretrain_dataset(seed)[SampleKey(epoch, index)]])

    reference = one(0, 0, 5)
    assert_same_batches([reference], [one(0, 0, 5)])
    for other in (one(1, 0, 5), one(0, 1, 5)):
        assert torch.equal(other.inputs, reference.inputs)
        assert not torch.equal(other.mask.mask, reference.mask.mask)
    assert not torch.equal(one(0, 0, 6).mask.mask, reference.mask.mask)


def test_a_stream_in_order_is_what_would_be_packed(root):
    packed = files(root)
    data = files(root, streaming=True, shuffle_buffer=1)
    assert (data.streaming, data.size, packed.streaming) == (True, None, False)
    found = torch.cat([batch.inputs for batch in loader(data, batches=int(packed.size) + 2, micro=1)])
    expected = [packed.train.load(i % int(packed.size)) for i in range(len(found))]
    assert found.tolist() == np.stack(expected).tolist()


def test_a_stream_is_shuffled_anew_every_epoch_and_complete(root):
    data, size = files(root, streaming=True, shuffle_buffer=32), int(files(root).size)
    epochs = torch.cat([batch.sample_ids for batch in loader(data, batches=2 * size, micro=1)]).reshape(2, -1).tolist()
    assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_a_stream_stores_nothing(root, tmp_path):
    list(loader(files(root, streaming=True)))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_too_many_bad_documents_stop_the_run_and_are_named(tmp_path, suffix):
    content = b"".join(b"\xff\n" if i % 20 == 3 else f"{i} cats sat\n".encode() for i in range(100))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".txt.gz" else content)
    data = files(str(path), max_bad_fraction=0.05)
    assert data.train.num_documents == 100
    reason = "not UTF-8 (invalid start byte at byte 0)"
    assert data.train.bad == tuple(f"{path}:{line}: {reason}" for line in (4, 24, 44, 64, 84))
    for _ in range(2):  # also when it is packed already
        with pytest.raises(TooManyBadSamples, match=r"5 of the data set's 100 .*max_bad_fraction=0\.04") as error:
            files(str(path), max_bad_fraction=0.04)
        assert f"{path}:4: {reason}" in str(error.value)


def test_bad_documents_are_named_whenever_packed_text_is_used(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_bytes(b"".join(b"\xff\n" if i in (3, 77) else b"cats sat\n" for i in range(200)))
    reason = "not UTF-8 (invalid start byte at byte 0)"
    for _ in range(2):
        caplog.clear()
        files(str(path))
        skipped = [record for record in caplog.records if record.getMessage().startswith("skipped")]
        assert [record.getMessage() for record in skipped] == [f"skipped {path}:{n}: {reason}" for n in (4, 78)]
        assert {record.levelname for record in skipped} == {"WARNING"}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_share_of_bad_documents_in_a_stream_is_of_documents(tmp_path, workers):
    """And not of blocks, of which there are fewer."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"".join(b"\xff\n" if i % 50 == 7 else b"cats sat\n" for i in range(20_000)))
    blocks = int(files(str(path), max_bad_fraction=0.03, block_size=64).size)
    assert blocks < 20_000 // 10
    data = files(str(path), max_bad_fraction=0.03, block_size=64, streaming=True, shuffle_buffer=1)
    timed = TrainLoader(loader(data, batches=blocks, micro=1, workers=workers), data.bad_sample_counter())
    batches = list(timed)
    assert sum(len(batch.skipped) for batch in batches) == timed.bad_samples.num_bad == 400
    assert sum(batch.num_read for batch in batches) == timed.bad_samples.num_seen == 20_000
    strict = files(str(path), max_bad_fraction=0.015, block_size=64, streaming=True, shuffle_buffer=1)
    with pytest.raises(TooManyBadSamples, match=r"of the first 1,\d\d\d samples cannot be read"):
        list(TrainLoader(loader(strict, batches=blocks, micro=1, workers=workers), strict.bad_sample_counter()))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"there is no text in these documents"),
        (b"\n \n\n", r"there is no text in these documents"),
        (b"\xff\n\xff\n", r"root=.*a\.txt: 2 of the first 2 lines are not UTF-8: .*iconv"),
        (b"a cat\n", r"block_size=16: the whole text has \d+ tokens; choose at most \d+"),
    ],
)
def test_text_without_a_block_is_refused_before_training(tmp_path, streaming, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = files(str(tmp_path / "a.txt"), streaming=streaming, max_bad_fraction=1.0).size


class Rows:
    """A stream of nothing, or of rows that cannot be read."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __iter__(self):
        return iter(range(self.num_rows))

    def decode(self, record):
        raise BadSample("torn:\n  twice")

    def name(self, index):
        return f"row[{index}]"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("num_rows", "kind", "message"),
    [
        (0, NoSamples, r"^path: the stream has no rows; check path=... and split=...$"),
        (
            7,
            BadSample,
            r"(?s)^1000 samples in a row cannot be read, from row\[0\]: torn:\n  twice to row\[5\]: .*twice$",
        ),
    ],
)
def test_a_worker_tells_what_is_wrong_with_a_stream_without_its_stack_trace(num_rows, kind, message, workers):
    plan = BatchPlan(micro_batch_size=2, num_batches=3)
    stream = StreamBatches(Rows(num_rows), None, None, 0, plan, 1)
    timed = TrainLoader(DataLoader(stream, batch_size=None, num_workers=workers), BadSampleCounter(1, None))
    with pytest.raises(kind, match=message):
        list(timed)
