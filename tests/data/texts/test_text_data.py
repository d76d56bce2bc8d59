"""Text from files, Hugging Face data sets and the package: batches, masks, tables, errors."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import inspect
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from d2v.arguments import parameters
from d2v.data.bad_samples import BadSample, BadSampleCounter, NoSamples, TooManyBadSamples
from d2v.data.eval_loader import eval_loader
from d2v.data.keys import SampleKey
from d2v.data.loading import TrainLoader
from d2v.data.samplers import BatchPlan, StreamSampler
from d2v.data.streams import StreamBatches
from d2v.data.texts import factories
from d2v.data.texts.blocks import TokenBlocks
from d2v.data.texts.data import TextData
from d2v.data.texts.documents import HFTexts, TextFiles, read_table
from d2v.data.texts.factories import fitting_tokenizer, hf_text, samples_text, text_files
from d2v.data.texts.samples import SampleTexts
from d2v.data.texts.tokenizer import load_tokenizer, train_tokenizer
from d2v.interop.build import build
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.masking import RandomMask
from d2v.types import Batch

pytest.importorskip("tokenizers")

MASK = RandomMask(num_masks=3, mask_ratio=0.42)
WORDS = ["a", "cat", "and", "the", "other", "dog", "sat", "on", "that", "old", "mat,", "größer", "猫", "said", "no"]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


@functools.cache
def tokenizer_json() -> str:
    return train_tokenizer(sentences(50), 300).to_json()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))


SIZES = {"tokenizer": tokenizer_json(), "vocab_size": 300, "block_size": 16}


@pytest.fixture
def root(tmp_path):
    """A folder of two files, 300 documents."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(sentences(200)) + "\n")
    (folder / "b.txt").write_text("\n".join(sentences(100, 1)) + "\n")
    return str(folder)


def files(root: str | None, **options) -> TextData:
    """With sizes for tests."""
    return text_files(root, **(SIZES | options))


def loader(data: TextData, *, batches: int = 6, micro: int = 8, start: int = 0, workers: int = 0, seed: int = 3):
    if data.streaming:
        plan = BatchPlan(micro_batch_size=micro, num_batches=batches, start_batch=start)
        return DataLoader(data.pretrain_stream(MASK, seed, plan), batch_size=None, num_workers=workers)
    sampler = StreamSampler(
        num_samples=int(data.size), micro_batch_size=micro, num_batches=batches, start_batch=start, seed=seed
    )
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=sampler,
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )


def assert_same_batches(a: list, b: list) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.sample_ids, y.sample_ids)
        assert torch.equal(x.mask.mask, y.mask.mask)
        assert x.skipped == y.skipped


# --- batches to pretrain on


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


# --- text that cannot be read


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


# --- tokenizers and sizes


def test_a_tokenizer_is_trained_on_the_documents_or_given(root, tmp_path):
    data = text_files(root, vocab_size=280, block_size=16, cache=str(tmp_path / "own"))
    assert data.tokenizer.fingerprint == train_tokenizer([*sentences(200), *sentences(100, 1)], 280).fingerprint
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["packed", "tokenizers"]
    assert not (tmp_path / "cache").exists()
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    given = text_files(root, tokenizer=str(tmp_path / "tokenizer.json"), vocab_size=1000, block_size=16)
    assert given.tokenizer.fingerprint == load_tokenizer(tokenizer_json()).fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["packed"]


def test_the_tokenizer_goes_with_an_encoder_and_comes_back(root, tmp_path):
    data = files(root)
    rows = table(tmp_path / "rows.tsv", "text\tlabel\nthe cat sat\tx\nno\ty\n")
    again = text_files(None, **data.assets(), vocab_size=300, block_size=16, probe_train=rows, probe_val=rows)
    assert again.tokenizer.fingerprint == data.tokenizer.fingerprint
    assert again.train is None


def test_a_document_may_be_a_file(root):
    assert files(root, document="file").train.num_documents == 2
    assert files(root).train.num_documents == 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 299}, r"data\.vocab_size=299: the tokenizer has 300 tokens; set data\.vocab_size=300"),
        ({"pad_id": 0}, r"data\.pad_id=0: the tokenizer's padding is 1; set data\.pad_id=1"),
        ({"block_size": 3}, r"data\.block_size=3: give a whole number from 4 to"),
        ({"block_size": 10**6}, r"block_size=1000000: the whole text has \d+ tokens; choose at most"),
        ({"max_bad_fraction": 1.1}, r"data\.max_bad_fraction=1\.1"),
        ({"shuffle_buffer": 0}, r"data\.shuffle_buffer=0: give a whole number from 1"),
        ({"document": "page"}, r"data\.document=page: choose one of line, file"),
        ({"tokenizer": None, "vocab_size": 260}, r"vocab_size=260: 5 special tokens and 256 bytes need 261"),
        ({"tokenizer": '{"a": 1}'}, r"tokenizer: not a tokenizer\.json"),
        ({"probe_train": "x.tsv"}, r"data\.probe_train=x\.tsv, data\.probe_val=None: give both tables or none"),
        ({"probe_val": "x.tsv"}, r"data\.probe_train=None, data\.probe_val=x\.tsv: give both tables or none"),
    ],
)
def test_value_errors_name_the_key(root, change, message):
    with pytest.raises(ValueError, match=message):
        _ = build({"_target_": "d2v.data.texts.factories.text_files", "root": root, **SIZES, **change}, key="data").size


def test_path_errors(root):
    with pytest.raises(FileNotFoundError, match=r"root=/gone: no such file or folder"):
        files("/gone")
    with pytest.raises(FileNotFoundError, match=r"tokenizer=/gone: no such file; train one with d2v tokenizer"):
        files(root, tokenizer="/gone")
    with pytest.raises(FileNotFoundError, match=r"probe_train=/gone: no such file; give a \.tsv or \.csv"):
        files(root, probe_train="/gone", probe_val="/gone")
    with pytest.raises(ValueError, match=r"tokenizer=null: without root=... there is nothing to train one on"):
        text_files(None)


def test_what_there_is_not(root, tmp_path):
    rows = table(tmp_path / "rows.tsv", "text\tlabel\nthe cat sat\tx\nno\ty\n")
    probes_only = files(None, probe_train=rows, probe_val=rows)
    for use in (
        lambda: probes_only.pretrain_dataset(0),
        lambda: probes_only.pretrain_collate(MASK, 0),
        lambda: probes_only.size,
    ):
        with pytest.raises(ValueError, match=r"root=null: there is no text to"):
            use()
    with pytest.raises(ValueError, match=r"split 'val': this data has no such labelled texts; set probe_train"):
        files(root).eval_dataset("val")
    with pytest.raises(ValueError, match=r"split 'test'"):
        probes_only.raw("test")
    with pytest.raises(ValueError, match=r"streaming=true: use pretrain_stream"):
        files(root, streaming=True).pretrain_dataset(0)
    with pytest.raises(ValueError, match=r"streaming=false: use pretrain_dataset"):
        files(root).pretrain_stream(MASK, 0, BatchPlan(micro_batch_size=4, num_batches=2))
    with pytest.raises(ValueError, match=r"num_masks=17"):
        files(root).pretrain_collate(RandomMask(num_masks=17), 0)
    assert files(root).class_names is None
    assert probes_only.class_names == ("x", "y")


# --- tables


def table(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_tsv_has_quotes_as_they_are(tmp_path):
    path = table(
        tmp_path / "a.tsv", 'idx\tsentence\tlabel\n0\the said "no\tgood\n1\t"a" cat, größer \tbad\n2\t"\tgood\n'
    )
    rows = read_table(path, "probe_train")
    assert rows.texts == ['he said "no', '"a" cat, größer', '"']
    assert (rows.labels, rows.class_names, len(rows)) == ([1, 0, 1], ("bad", "good"), 3)
    assert [rows.label(i) for i in range(3)] == [1, 0, 1]
    assert rows.name(1) == f"{path}[1]"


def test_a_csv_has_quoted_fields(tmp_path):
    path = table(tmp_path / "a.csv", '\ufefflabel,text\n"a","one, two ""x"""\nb,"two\nlines"\n')
    rows = read_table(path, "probe_train")
    assert rows.texts == ['one, two "x"', "two\nlines"]
    assert rows.labels == [0, 1]


def test_lines_may_end_as_on_windows(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\r\na cat\tx\r\na dog\ty\r\n")
    rows = read_table(str(tmp_path / "a.tsv"), "probe_train")
    assert (rows.texts, rows.class_names) == (["a cat", "a dog"], ("x", "y"))


def test_columns_are_found_or_asked_for(tmp_path):
    path = table(tmp_path / "a.tsv", "text\ttitle\tlabel\tstars\nt\th\ta\t5\n")
    assert read_table(path, "k").texts == ["t"]
    chosen = read_table(path, "k", "title", "stars")
    assert (chosen.texts, chosen.class_names) == (["h"], ("5",))
    with pytest.raises(ValueError, match=r"text_column=body: .*a\.tsv has the columns text, title, label, stars;"):
        read_table(path, "k", "body")
    with pytest.raises(ValueError, match=r"label_column=class: .*; set label_column to one of them"):
        read_table(path, "k", None, "class")
    with pytest.raises(ValueError, match=r"text_column=null: .*b\.tsv has the columns a, label"):
        read_table(table(tmp_path / "b.tsv", "a\tlabel\nx\ty\n"), "k")


def test_short_rows_and_unknown_labels_are_named_by_file_and_line(tmp_path):
    short = table(tmp_path / "short.tsv", "text\tlabel\nfine\tx\nno label\n")
    with pytest.raises(ValueError, match=r"short\.tsv:3: 1 columns, but the header has 2"):
        read_table(short, "probe_train")
    multiline = table(tmp_path / "lines.csv", 'text,label\n"two\nlines",x\nno label\n')
    with pytest.raises(ValueError, match=r"lines\.csv:4: 1 columns"):
        read_table(multiline, "probe_train")
    train = table(tmp_path / "train.tsv", "text\tlabel\na\tx\nb\ty\n")
    val = table(tmp_path / "val.tsv", "text\tlabel\nc\ty\nd\tz\n")
    with pytest.raises(ValueError, match=r"val\.tsv:3: label 'z' is not in the training set \(x, y\)"):
        files(None, probe_train=train, probe_val=val)


def test_a_table_without_rows_or_utf8(tmp_path):
    for content in ("text\tlabel\n", ""):
        with pytest.raises(ValueError, match=r"has no rows|an empty table"):
            read_table(table(tmp_path / "a.tsv", content), "probe_train")
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\n\xe9\tx\n")
    with pytest.raises(ValueError, match=r"probe_val=.*a\.tsv: not UTF-8 \(invalid continuation byte at byte 11"):
        read_table(str(tmp_path / "a.tsv"), "probe_val")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".CSV"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_cells_that_csv_quotes_are_understood(tmp_path, suffix, quoting):
    texts = ["plain", "with\ta tab", "with, a comma", "on two\nlines", 'he said "no"', '"quoted"', "größer"]
    delimiter = "\t" if suffix == ".tsv" else ","
    path = tmp_path / f"a{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerows([["text", "label"], *([text, i % 2] for i, text in enumerate(texts))])
    rows = read_table(str(path), "k")
    assert (rows.texts, rows.labels) == (texts, [0, 1, 0, 1, 0, 1, 0])
    path.write_bytes(path.read_text().encode("utf-16"))
    assert read_table(str(path), "k").texts == [text.replace("\r", "") for text in texts]


def test_bare_quotes_in_a_tsv_are_letters(tmp_path):
    """As in GLUE's files: a quote need not be closed."""
    path = table(tmp_path / "a.tsv", 'text\tlabel\n"open\tx\na 5" nail\ty\n"all of it"\tx\n')
    assert read_table(path, "k").texts == ['"open', 'a 5" nail', '"all of it"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", 'text\tlabel\na "b" c\tand so on\tx\n', r"a\.tsv:2: 3 columns, but the header has 2; put cells"),
        ("a.csv", "text,label\n\na,b,x\n", r"a\.csv:3: 3 columns, but the header has 2; put cells that hold"),
        ("a.csv", 'text,label\nfine,x\n"open,x\nmore,y\n', r"a\.csv:3: .*; close the quotes"),
        ("a.csv", 'text,label\n"a" b,x\n', r"a\.csv:2: .* expected after .*; close the quotes"),
        ("a.csv", "text;label\na;x\n", r"=null: .*a\.csv has one column alone, 'text;label'; separate .* by commas"),
        ("a.tsv", "text,label\na,x\n", r"=null: .*a\.tsv has one column alone, 'text,label'; separate .* by tabs"),
        ("a.tsv", "", r"^k=.*a\.tsv: an empty table; give a \.tsv or \.csv file with a header"),
        ("a.csv", "\n\n", r"^k=.*a\.csv: an empty table"),
        ("a.tsv", "text\ttext\tlabel\na\tb\tx\n", r"a\.tsv:1: the header has 2 columns 'text'; rename all but one"),
        ("a.tsv", "text\tlabel\na\t \n", r"a\.tsv:2: no label in column 'label'; add one, or remove the row"),
        ("a.tsv", "text\tlabel\na\0b\tx\n", r"a\.tsv:2: a NUL character"),
        ("a.tsv", b"PK\x03\x04" + bytes(90), r"k=.*a\.tsv: a zip archive, not plain text"),
        ("a.tsv", b"version https://git-lfs.github.com/spec/v1\noid\n", r"k=.*a\.tsv: a Git LFS pointer"),
        ("a.tsv", gzip.compress(b"text\tlabel\n", mtime=0), r"k=.*a\.tsv: gzip, not plain text"),
    ],
)
def test_tables_that_cannot_be_read_right_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / name), "k")


def test_classes_that_differ_only_in_blanks_or_case_are_named(tmp_path, caplog):
    path = table(tmp_path / "a.tsv", "text\tlabel\na\tgood\nb\tGood \nc\t bad\nd\tgo od\n")
    assert read_table(path, "k").class_names == ("Good", "bad", "go od", "good")
    assert caplog.messages == [f"{path}: the classes 'Good', 'go od', 'good' differ only in blanks or case"]


def test_the_limit_takes_rows_evenly_and_for_training_only(tmp_path):
    content = "text\tlabel\n" + "".join(f"row {i}\t{'c' if i == 3 else i % 2}\n" for i in range(10))
    path = table(tmp_path / "a.tsv", content)
    assert read_table(path, "k", limit=4).texts == ["row 0", "row 2", "row 5", "row 7"]
    assert read_table(path, "k", limit=10).texts == read_table(path, "k", limit=99).texts == read_table(path, "k").texts
    data = files(None, probe_train=path, probe_val=path, probe_limit=4)
    assert (len(data.probe_train), len(data.val)) == (4, 10)
    assert data.class_names == data.val.class_names == ("0", "1", "c")  # those of rows left out, too


# --- texts to evaluate on

LONG = "the other dog sat on that old mat " * 9


@pytest.fixture
def labelled(tmp_path):
    """Texts of every length, the second one empty."""
    rows = table(tmp_path / "rows.tsv", f"text\tlabel\nno\tx\n \ty\nthe cat sat\ty\n{LONG}\tx\na\tx\n")
    return files(None, probe_train=rows, probe_val=rows)


def eval_batches(data: TextData, batch_size: int = 8) -> list[Batch]:
    return list(DataLoader(data.eval_dataset("val"), batch_size=batch_size, collate_fn=data.eval_collate))


def test_texts_are_opened_closed_cut_and_padded(labelled):
    tokenizer = labelled.tokenizer
    (batch,) = eval_batches(labelled)
    assert batch.sample_ids.tolist() == [0, 2, 3, 4]
    assert batch.labels.tolist() == [0, 1, 0, 0]
    assert len(batch.skipped) == 1
    assert batch.skipped[0].endswith("rows.tsv[1]: empty text")
    assert batch.mask is None
    ids = [tokenizer.encode([text])[0].tolist() for text in ("no", "the cat sat", LONG, "a")]
    rows = [[tokenizer.bos_id, *i[:14], tokenizer.eos_id] for i in ids]
    assert [len(row) == 16 for row in rows] == [False, False, True, False]
    for row, padded, padding in zip(rows, batch.inputs.tolist(), batch.padding_mask.tolist(), strict=True):
        assert padded == row + [tokenizer.pad_id] * (16 - len(row))
        assert padding == [False] * len(row) + [True] * (16 - len(row))


def test_evaluation_batches_hold_texts_of_about_one_length(labelled):
    first, second = eval_loader(labelled, "val", batch_size=3)
    assert first.sample_ids.tolist() == [4, 0]  # and the empty text
    assert second.sample_ids.tolist() == [2, 3]


def test_texts_of_one_length_have_no_padding_mask(labelled):
    batches = eval_batches(labelled, batch_size=1)
    assert [batch.padding_mask for batch in batches] == [None] * 5
    assert batches[1].inputs.shape[0] == 0
    assert batches[1].skipped
    assert batches[3].inputs.shape == (1, 16)


def test_raw_texts_and_labels(labelled):
    """Without the empty ones, which the encoder skips: every row of a table is about the same texts."""
    texts, labels = labelled.raw("val")
    assert texts == ["no", "the cat sat", LONG.strip(), "a"]
    assert labels.tolist() == [0, 1, 0, 0]


def test_padding_changes_no_output(labelled):
    encoder = transformer_encoder(
        {"text": TextFrontend(16, 300, max_positions=16)}, 16, depth=2, num_heads=4, prenet_depth=1
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    encoder.eval()
    (together,) = eval_batches(labelled)
    alone = [batch for batch in eval_batches(labelled, batch_size=1) if len(batch.inputs)]
    with torch.inference_mode():
        padded = encoder(together).x
        for row, batch in zip(padded, alone, strict=True):
            expected = encoder(batch).x[0]
            torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=0)
        blind = encoder(Batch("text", together.inputs, together.sample_ids)).x
    assert (blind[0, :3] - padded[0, :3]).abs().max() > 1e-2  # without the mask it would show


# --- Hugging Face


def documents_of(source: HFTexts, start: int = 0) -> list[str | None]:
    return [document.text for document in source.read(start)]


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """Makes a directory of parquet or JSON lines: 40 texts, the third of them missing, and their numbers."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    texts: list[str | None] = [f" {text}" for text in sentences(40)]
    texts[2] = None

    def make(kind: str, name: str = "set", **more: list[str]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        columns = {"body": texts, "number": list(range(40)), **more}
        if kind == "parquet":
            datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
        elif kind == "saved":
            datasets.Dataset.from_dict(columns).save_to_disk(folder)
        else:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder)

    return make


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "json", "saved"])
def test_hf_documents(hugging_face, kind, streaming):
    source = HFTexts(hugging_face(kind), streaming=streaming)
    expected = sentences(40)
    found = list(source.read())
    assert [document.text for document in found] == [*expected[:2], None, *expected[3:]]
    assert found[2].name.endswith("set/train[2]")
    assert found[2].reason == "no text in this row"
    assert [document.name for document in source.read(17)] == [document.name for document in found[17:]]
    assert documents_of(source, 17) == expected[17:]
    assert documents_of(pickle.loads(pickle.dumps(source))) == documents_of(source)


def test_hf_text_both_ways(hugging_face, tmp_path):
    sizes = {"tokenizer": tokenizer_json(), "vocab_size": 300, "block_size": 8, "max_bad_fraction": 0.1}
    path = hugging_face("parquet")
    packed = hf_text(path, **sizes)
    assert (packed.train.num_documents, len(packed.train.bad)) == (40, 1)
    with pytest.raises(TooManyBadSamples, match=r"1 of the data set's 40 .*\n.*set/train\[2\]: no text in this row"):
        hf_text(path, **{**sizes, "max_bad_fraction": 0.0})
    lines = tmp_path / "same.txt"
    lines.write_text("\n".join(text for i, text in enumerate(sentences(40)) if i != 2))
    same = files(str(lines), block_size=8)
    assert [packed.train.load(i).tolist() for i in range(int(packed.size))] == [
        same.train.load(i).tolist() for i in range(int(same.size))
    ]
    stream = hf_text(path, streaming=True, shuffle_buffer=1, **sizes)
    assert stream.train.documents.streaming
    found = torch.cat([batch.inputs for batch in loader(stream, batches=int(packed.size), micro=1)])
    assert found.tolist() == [packed.train.load(i).tolist() for i in range(int(packed.size))]


def test_hf_text_is_packed_once_and_anew_for_another_column(hugging_face, tmp_path):
    path = hugging_face("parquet", title=sentences(40, 1))
    chosen = {"tokenizer": tokenizer_json(), "vocab_size": 300, "block_size": 8, "max_bad_fraction": 1.0}
    folders = [hf_text(path, column=column, **chosen).train.folder for column in ("body", "title", "body")]
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_text_trains_a_tokenizer_for_every_column(hugging_face, streaming):
    path = hugging_face("parquet", title=["quite another text"] * 40)
    sizes = {"vocab_size": 280, "block_size": 8, "max_bad_fraction": 1.0, "streaming": streaming}
    body, title = (hf_text(path, column=column, **sizes).tokenizer for column in ("body", "title"))
    assert title.fingerprint == train_tokenizer(["quite another text"] * 40, 280).fingerprint != body.fingerprint
    assert hf_text(path, column="body", **sizes).tokenizer.fingerprint == body.fingerprint


def test_hf_columns_are_found_or_asked_for(hugging_face):
    path = hugging_face("parquet", title=sentences(40, 1))
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"=null: .*set has 2 columns of type string; set .* one of body, title"):
            HFTexts(path, streaming=streaming)
        with pytest.raises(ValueError, match=r"=text: .*set has the columns body, number, title"):
            HFTexts(path, text_column="text", streaming=streaming)
        assert documents_of(HFTexts(path, "train", "title", streaming)) == sentences(40, 1)
    with pytest.raises(ValueError, match=r"split=test: no such split"):
        hf_text(path, "test")
    with pytest.raises(FileNotFoundError, match=r"path=\./gone: no such directory"):
        hf_text("./gone")


def test_hf_text_trains_a_tokenizer(hugging_face):
    data = hf_text(hugging_face("json"), vocab_size=280, block_size=8, max_bad_fraction=1.0)
    expected = train_tokenizer([text for i, text in enumerate(sentences(40)) if i != 2], 280)
    assert data.tokenizer.fingerprint == expected.fingerprint


def test_text_without_labels_is_extracted_by_document(tmp_path, caplog):
    """Of any length: cut to what the encoder reads, and named by file and line."""
    texts = ["no", "", "the cat sat", LONG.strip(), "a"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    data = files(str(tmp_path))
    batches = list(eval_loader(data, "train", batch_size=2))
    rows = {
        i: row[~padding].tolist()
        for batch in batches
        for i, row, padding in zip(
            batch.sample_ids.tolist(),
            batch.inputs,
            torch.zeros_like(batch.inputs).bool() if batch.padding_mask is None else batch.padding_mask,
            strict=True,
        )
    }
    bos, eos = data.tokenizer.bos_id, data.tokenizer.eos_id
    full = [[bos, *data.tokenizer.encode([text])[0].tolist()[:14], eos] for text in texts if text]
    assert [rows[i] for i in range(4)] == full
    assert len(full[2]) == 16
    source = data.eval_dataset("train").source
    assert [source.name(i) for i in range(4)] == [f"{tmp_path / 'a.txt'}:{line}" for line in (1, 3, 4, 5)]
    assert "cut 1 of 4 documents to block_size=16 tokens" in caplog.messages
    assert batches[0].labels is None


def test_fewer_texts_than_a_block_holds_are_extracted_but_not_trained_on(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n")
    data = files(str(tmp_path), block_size=64)
    assert len(data.eval_dataset("train")) == 1
    for use in (lambda: data.size, lambda: data.pretrain_dataset(0), lambda: data.pretrain_collate(MASK, 0)):
        with pytest.raises(ValueError, match=r"block_size=64: the whole text has 3 tokens; choose at most 4"):
            use()


def test_a_stream_has_no_documents_to_extract(root):
    with pytest.raises(ValueError, match=r"streaming=true: .*set streaming=false"):
        files(root, streaming=True).eval_dataset("train")


def test_packed_text_of_other_documents_is_refused(root, tmp_path):
    data = files(root)
    (tmp_path / "b.txt").write_text("a cat\n")
    other = dataclasses.replace(data, documents=TextFiles(str(tmp_path / "b.txt")))
    with pytest.raises(ValueError, match=r"holds 300 documents, but there are 1 with a text; remove the folder"):
        other.eval_dataset("train")


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_text_trains_another_tokenizer_when_the_files_change(hugging_face, streaming):
    """A stream has no fingerprint of its own."""
    path = Path(hugging_face("json"))
    before = hf_text(str(path), vocab_size=280, block_size=8, max_bad_fraction=1.0, streaming=streaming).tokenizer
    (file,) = path.glob("*.json*")
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in sentences(40, 3)))
    after = hf_text(str(path), vocab_size=280, block_size=8, max_bad_fraction=1.0, streaming=streaming).tokenizer
    assert after.fingerprint == train_tokenizer(sentences(40, 3), 280).fingerprint != before.fingerprint


# --- the shipped samples


def test_samples_hold_2500_out():
    samples = SampleTexts()
    rows = samples.rows()
    documents = [document.text for document in samples.read()]
    assert (len(rows), len(documents)) == (117_659, 115_159)
    assert not {gloss for _, gloss in rows[:2500]} & set(documents)
    train, val = samples.labelled("train"), samples.labelled("val")
    assert (len(train), len(val)) == (10_000, 2_500)
    assert len(train.class_names) == 45
    assert train.class_names == val.class_names
    assert set(train.labels) == set(val.labels) == set(range(45))
    assert not set(train.texts) & set(val.texts)
    assert all(text.strip() for text in train.texts + val.texts)
    number, (name, gloss) = 1234, rows[1234]
    assert val.class_names[val.label(number)] == name
    assert gloss.startswith(val.load(number))
    assert [document.text for document in samples.read(115_000)] == documents[115_000:]


def test_samples_text(monkeypatch, tmp_path):
    few = SampleTexts().rows()[:4000]
    monkeypatch.setattr(SampleTexts, "rows", lambda self: few)
    data = samples_text(vocab_size=400, block_size=32, cache=str(tmp_path / "own"))
    assert data.train.num_documents == 1500
    encoded = data.tokenizer.encode([gloss for _, gloss in few[2500:]])
    assert data.train.num_tokens == sum(len(ids) + 1 for ids in encoded)
    batch = next(iter(loader(data)))
    assert batch.inputs.shape == (8, 32)
    evaluated = next(iter(DataLoader(data.eval_dataset("val"), batch_size=64, collate_fn=data.eval_collate)))
    assert evaluated.inputs.shape[0] == len(evaluated.labels) == 64
    assert data.tokenizer.decode(evaluated.inputs[0].tolist()) in few[0][1]


# --- configuration files


@pytest.mark.parametrize("factory", [samples_text, text_files, hf_text])
def test_configuration_files_spell_out_every_keyword(factory, data_config):
    config = data_config(factory.__name__)
    keywords = parameters(factory)
    assert config.pop("_target_") == f"{factory.__module__}.{factory.__name__}"
    assert set(config) == set(keywords)
    own = {"vocab_size": 4096, "block_size": 128} if factory is samples_text else {}
    stated = [parameters(target) for target in (factories._corpus, factories._text_data, fitting_tokenizer)]
    unknown = (..., inspect.Parameter.empty)
    passed_on = {name: p.default for known in stated for name, p in known.items() if p.default not in unknown}
    for name, keyword in keywords.items():
        default = keyword.default
        if default is ...:
            default = own.get(name, passed_on[name])
        if default is inspect.Parameter.empty:
            assert OmegaConf.is_missing(config, name), name
        else:
            assert config[name] == default, name


def test_blocks_and_files_are_what_the_trainer_expects(root):
    data = files(root)
    assert isinstance(data.train, TokenBlocks)
    assert (data.batch_unit, data.size) == ("samples", len(data.train))
    assert (data.split_batch(32, 8, 2).accumulate, data.bad_sample_counter().num_samples) == (2, len(data.train))
    assert files(root, streaming=True).bad_sample_counter().num_samples is None
    assert TextFiles(root).key == "root"


def test_blanks_before_quotes_are_no_part_of_a_cell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text, label\n"a, b", "1"\nc, 0\n')
    rows = read_table(str(path), "k")
    assert (rows.texts, rows.class_names, rows.labels) == (["a, b", "c"], ("0", "1"), [1, 0])


def test_the_summary_says_what_was_packed_and_left_out(root):
    for name in ("a.jsonl", "b.jsonl", "notes.md", ".hidden.txt"):
        (Path(root) / name).write_text("x\n")
    data = files(root)
    first, left_out, note = data.describe()
    assert first == f"train     {int(data.size)} blocks from {root}"
    assert "2 .jsonl, 1 .md" in left_out
    assert data.train.contents.left_out == {".jsonl": 2, ".md": 1, "hidden": 1}
    assert note == f"          300 documents, {data.train.num_tokens:,} tokens"


def test_text_files_named_as_splits_are_named(root):
    for name in ("train.txt", "valid.txt"):
        (Path(root) / name).write_text("x\n")
    assert any("read as all the others: valid.txt; " in line for line in files(root).describe())


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(
        FileNotFoundError, match=r"no text file there .*; it holds 1 \.jsonl, which data=hf_text may read"
    ):
        files(str(tmp_path))


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.txt"))
    path.write_bytes(b"fine\n" * 50 + b"\xff\n")
    data = files(str(tmp_path))
    assert data.train.bad == (rf"{tmp_path}/caf\xe9.txt:51: not UTF-8 (invalid start byte at byte 0)",)
    assert data.eval_dataset("train").source.name(0) == rf"{tmp_path}/caf\xe9.txt:1"


def test_broken_links_and_files_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("fine\n" * 50)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    bad = files(str(tmp_path)).train.bad
    assert [entry.partition(" (")[0] for entry in bad] == [
        f"{tmp_path}/{name}.txt:1: cannot be read on" for name in ("gone", "loop")
    ]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("fine\n" * 50)
    scan = os.scandir

    def refusing(folder):
        if str(folder).endswith("theirs"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match=r"root=.*: 1 folders cannot be read: .*theirs \(Permission denied\)"):
        files(str(tmp_path))


def test_too_many_lines_in_another_encoding_say_what_to_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("größer\nfine\nfine\nfine\n".encode("latin-1") * 50)
    with pytest.raises(TooManyBadSamples, match=r"Text must be UTF-8: convert it, for example with iconv"):
        files(str(path))
