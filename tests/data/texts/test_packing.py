"""Packing once and anew: damage, interruptions, other processes, the cache."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from packed_texts import Texts, bpe, expected_tokens, tokens_in
from small_texts import sentences

from d2v.data.texts import blocks as text_blocks
from d2v.data.texts.blocks import cache_dir, cached_tokenizer, pack
from d2v.data.texts.documents import Document, TextFiles
from d2v.data.texts.tokenizer import Tokenizer, train_tokenizer

library = pytest.importorskip("tokenizers")


def test_packed_once(tmp_path):
    documents = Texts(sentences(9))
    first = pack(documents, bpe(), tmp_path)
    times = (first / "tokens.bin").stat().st_mtime_ns
    assert pack(documents, bpe(), tmp_path) == first
    assert documents.starts == [0]
    assert (first / "tokens.bin").stat().st_mtime_ns == times


def test_packed_anew_for_another_tokenizer_or_other_documents(tmp_path):
    texts = sentences(9)
    folders = [
        pack(Texts(texts), bpe(), tmp_path),
        pack(Texts(texts), bpe(290), tmp_path),
        pack(Texts(texts[1:], "y"), bpe(), tmp_path),
    ]
    assert len(set(folders)) == 3
    assert tokens_in(folders[1]) == expected_tokens(texts, bpe(290))
    assert tokens_in(folders[2]) == expected_tokens(texts[1:], bpe())


def test_packed_anew_when_a_file_changes(tmp_path):
    root = tmp_path / "text"
    root.mkdir()
    (root / "a.txt").write_text("a cat\n")
    packed = [pack(TextFiles(str(root)), bpe(), tmp_path)]
    os.utime(root / "a.txt", ns=(0, 10**9))
    packed.append(pack(TextFiles(str(root)), bpe(), tmp_path))
    (root / "a.txt").write_text("a dog and a cat\n")
    packed.append(pack(TextFiles(str(root)), bpe(), tmp_path))
    (root / "b.txt").write_text("a mat\n")
    packed.append(pack(TextFiles(str(root)), bpe(), tmp_path))
    packed.append(pack(TextFiles(str(root), "file"), bpe(), tmp_path))
    assert len(set(packed)) == 5
    assert tokens_in(packed[2]) == expected_tokens(["a dog and a cat"], bpe())
    assert tokens_in(packed[3]) == expected_tokens(["a dog and a cat", "a mat"], bpe())
    assert pack(TextFiles(str(root)), bpe(), tmp_path) == packed[3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "tokens cut": lambda folder: cut(folder / "tokens.bin"),
    "tokens gone": lambda folder: (folder / "tokens.bin").unlink(),
    "record empty": lambda folder: (folder / "packed.json").write_text(""),
    "record cut": lambda folder: cut(folder / "packed.json"),
    "record of something else": lambda folder: (folder / "packed.json").write_text('{"tokens": 3}'),
    "record is a list": lambda folder: (folder / "packed.json").write_text("[]"),
    "record is a number": lambda folder: (folder / "packed.json").write_text("0"),
    "tokens of another kind": lambda folder: (folder / "packed.json").write_text(
        '{"tokens": 3, "documents": 1, "bad": [], "dtype": "uint32"}'
    ),
    "bytes": lambda folder: (folder / "packed.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_packed_anew(tmp_path, caplog, damage):
    texts = [*sentences(9), None]
    folder = pack(Texts(texts), bpe(), tmp_path)
    before = [(folder / name).read_bytes() for name in ("tokens.bin", "packed.json")]
    assert not caplog.records
    DAMAGES[damage](folder)
    documents = Texts(texts)
    assert pack(documents, bpe(), tmp_path) == folder
    assert documents.starts == [0]
    assert [(folder / name).read_bytes() for name in ("tokens.bin", "packed.json")] == before
    assert f"{folder}/packed.json is damaged (" in caplog.text
    assert len(caplog.records) == 1


class Killed(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, where: str, calls: int) -> None:
    """The ``calls``-th call of a method raises."""
    counter = itertools.count(1)
    owner, name = {"encode": (Tokenizer, "encode"), "read": (Texts, "read"), "record": (text_blocks, "_write")}[where]
    original = getattr(owner, name)

    def method(*arguments: Any) -> Any:
        if where == "read":
            return itertools.chain(itertools.islice(original(*arguments), calls), _raise())
        if next(counter) == calls:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, name, method)


def _raise() -> Iterator[Document]:
    raise Killed
    yield


@pytest.mark.parametrize(
    ("where", "calls", "goes_on_from"),
    [("encode", 1, 0), ("encode", 4, 9), ("read", 10, 9), ("read", 1, 0), ("record", 3, 6), ("record", 8, 20)],
)
def test_an_interrupted_packing_goes_on(tmp_path, monkeypatch, where, calls, goes_on_from):
    monkeypatch.setattr(text_blocks, "_CHUNK", 3)
    texts = [*sentences(8), None, *sentences(5, 1), None, "", *sentences(4, 2)]
    whole = pack(Texts(texts), bpe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, where, calls)
        with pytest.raises(Killed):
            pack(Texts(texts), bpe(), tmp_path / "cache")
    assert not list(tmp_path.glob("cache/**/packed.json"))
    documents = Texts(texts)
    folder = pack(documents, bpe(), tmp_path / "cache")
    assert documents.starts == [goes_on_from]
    assert (folder / "tokens.bin").read_bytes() == (whole / "tokens.bin").read_bytes()
    assert json.loads((folder / "packed.json").read_text()) == json.loads((whole / "packed.json").read_text())
    assert not (folder / "progress.json").exists()


def test_tokens_that_were_written_but_not_recorded_are_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "_CHUNK", 3)
    texts = sentences(10)
    whole = pack(Texts(texts), bpe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, "encode", 3)
        with pytest.raises(Killed):
            pack(Texts(texts), bpe(), tmp_path / "cache")
    (tokens,) = (tmp_path / "cache").rglob("tokens.bin")
    with tokens.open("ab") as file:
        file.write(b"\x07" * 11)  # an odd number of bytes
    folder = pack(Texts(texts), bpe(), tmp_path / "cache")
    assert (folder / "tokens.bin").read_bytes() == (whole / "tokens.bin").read_bytes()


@pytest.mark.parametrize("name", ["progress.json", "tokens.bin", "bad.jsonl"])
def test_an_interrupted_packing_that_is_damaged_starts_anew(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setattr(text_blocks, "_CHUNK", 3)
    texts = [None, *sentences(10)]
    whole = pack(Texts(texts), bpe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, "encode", 3)
        with pytest.raises(Killed):
            pack(Texts(texts), bpe(), tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob(name)
    cut(path)
    documents = Texts(texts)
    folder = pack(documents, bpe(), tmp_path / "cache")
    assert documents.starts == [0]
    assert "progress.json is damaged (" in caplog.text
    assert [(folder / n).read_bytes() for n in ("tokens.bin", "packed.json")] == [
        (whole / n).read_bytes() for n in ("tokens.bin", "packed.json")
    ]


def test_what_is_recorded_while_packing_does_not_grow_with_the_bad_documents(tmp_path, monkeypatch):
    """Or many of them would take the square of their number."""
    monkeypatch.setattr(text_blocks, "_CHUNK", 3)
    sizes, original = [], text_blocks._write

    def write(path: Path, content: dict[str, Any]) -> None:
        original(path, content)
        sizes.append((path.name, path.stat().st_size))

    monkeypatch.setattr(text_blocks, "_write", write)
    folder = pack(Texts(["a cat", *[None] * 299]), bpe(), tmp_path)
    assert len(json.loads((folder / "packed.json").read_text())["bad"]) == 299
    assert max(size for name, size in sizes if name == "progress.json") < 100
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "packed.json", "tokens.bin"]


class SlowTexts(Texts):
    """Notes in a file which processes read it."""

    def __init__(self, texts: Sequence[str], log: Path) -> None:
        super().__init__(texts)
        self.log = log

    def read(self, start: int = 0) -> Iterator[Document]:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        for document in super().read(start):
            time.sleep(0.02)
            yield document


def pack_with_others(barrier: Any, documents: SlowTexts, tokenizer: Tokenizer, folder: Path) -> None:
    barrier.wait(200)
    target = pack(documents, tokenizer, folder)
    (folder / f"{os.getpid()}.done").write_text(json.dumps([str(target), tokens_in(target)]))


def test_processes_that_pack_at_the_same_time_agree(tmp_path):
    texts = sentences(20)
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(2), SlowTexts(texts, tmp_path / "log"), bpe(), tmp_path)
    processes = [context.Process(target=pack_with_others, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0, 0]
    (folder, tokens), other = [json.loads(path.read_text()) for path in tmp_path.glob("*.done")]
    assert other == [folder, tokens]
    assert tokens == expected_tokens(texts, bpe())
    assert len((tmp_path / "log").read_text().split()) == 1  # the other one waited


def test_a_tokenizer_is_trained_once_for_documents_and_size(tmp_path):
    documents = Texts([*sentences(30), None, ""])
    tokenizer = cached_tokenizer(documents, 290, tmp_path)
    assert tokenizer.fingerprint == train_tokenizer([t for t in documents.texts if t], 290).fingerprint
    assert cached_tokenizer(documents, 290, tmp_path).fingerprint == tokenizer.fingerprint
    assert documents.starts == [0]
    assert cached_tokenizer(documents, 280, tmp_path).vocab_size == 280
    cached_tokenizer(Texts(sentences(30, 1), "y"), 290, tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 3
    assert not [*tmp_path.rglob("*.tmp"), *tmp_path.rglob("*.part")]


def test_a_tokenizer_whose_training_was_interrupted_is_trained_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, "read", 7)
        with pytest.raises(Killed):
            cached_tokenizer(Texts(sentences(30)), 290, tmp_path)
    tokenizer = cached_tokenizer(Texts(sentences(30)), 290, tmp_path)
    assert tokenizer.fingerprint == train_tokenizer(sentences(30), 290).fingerprint


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_tokenizer_is_trained_anew(tmp_path, caplog, content):
    documents = Texts(sentences(30))
    tokenizer = cached_tokenizer(documents, 290, tmp_path)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(content)
    assert cached_tokenizer(documents, 290, tmp_path).fingerprint == tokenizer.fingerprint
    assert f"{path}: not a tokenizer.json" in caplog.text
    assert "training it anew" in caplog.text
    assert cached_tokenizer(documents, 290, tmp_path).fingerprint == tokenizer.fingerprint
    assert documents.starts == [0, 0]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("D2V_CACHE", raising=False)
    assert cache_dir(None) == tmp_path / ".cache" / "d2v"
    monkeypatch.setenv("D2V_CACHE", "~/elsewhere")
    assert cache_dir(None) == tmp_path / "elsewhere"
    assert cache_dir(str(tmp_path / "given")) == tmp_path / "given"


def test_a_cache_that_cannot_be_made_is_named_by_its_key(monkeypatch, tmp_path):
    fix = r"Not a directory; give a folder that can be written to by cache=DIR or D2V_CACHE"
    monkeypatch.setenv("D2V_CACHE", "/dev/null/x")
    with pytest.raises(ValueError, match=f"^D2V_CACHE=/dev/null/x: {fix}"):
        cache_dir(None)
    with pytest.raises(ValueError, match=f"^cache=/dev/null/y: {fix}"):
        cache_dir("/dev/null/y")
    monkeypatch.setenv("D2V_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"D2V_CACHE={tmp_path}: Permission denied"):
        cache_dir(None)
