"""Text from files and the package: tokenizers, evaluation, errors."""

from __future__ import annotations

import dataclasses
import inspect
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_texts import MASK, SIZES, files, loader, sentences, table, tokenizer_json
from torch import nn
from torch.utils.data import DataLoader

from d2v.arguments import parameters
from d2v.data.bad_samples import TooManyBadSamples
from d2v.data.eval_loader import eval_loader
from d2v.data.samplers import BatchPlan
from d2v.data.texts import factories
from d2v.data.texts.blocks import TokenBlocks
from d2v.data.texts.data import TextData
from d2v.data.texts.documents import TextFiles
from d2v.data.texts.factories import fitting_tokenizer, hf_text, samples_text, text_files
from d2v.data.texts.samples import SampleTexts
from d2v.data.texts.tokenizer import load_tokenizer, train_tokenizer
from d2v.interop.build import build
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.masking import RandomMask
from d2v.types import Batch

pytest.importorskip("tokenizers")


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
