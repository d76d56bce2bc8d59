"""Text of Hugging Face data sets: documents, columns, packing, tokenizers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from small_texts import files, loader, sentences, tokenizer_json

from d2v.data.bad_samples import TooManyBadSamples
from d2v.data.texts.documents import HFTexts
from d2v.data.texts.factories import hf_text
from d2v.data.texts.tokenizer import train_tokenizer

pytest.importorskip("tokenizers")


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


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_text_trains_another_tokenizer_when_the_files_change(hugging_face, streaming):
    """A stream has no fingerprint of its own."""
    path = Path(hugging_face("json"))
    before = hf_text(str(path), vocab_size=280, block_size=8, max_bad_fraction=1.0, streaming=streaming).tokenizer
    (file,) = path.glob("*.json*")
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in sentences(40, 3)))
    after = hf_text(str(path), vocab_size=280, block_size=8, max_bad_fraction=1.0, streaming=streaming).tokenizer
    assert after.fingerprint == train_tokenizer(sentences(40, 3), 280).fingerprint != before.fingerprint
