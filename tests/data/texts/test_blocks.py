"""Documents in files, packed into one file of tokens, and blocks of it."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2v.data.texts import blocks as text_blocks
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks, cache_dir, cached_tokenizer, pack
from d2v.data.texts.documents import Document, TextFiles
from d2v.data.texts.tokenizer import Tokenizer, train_tokenizer

library = pytest.importorskip("tokenizers")

WORDS = ["a", "cat", "and", "the", "other", "dog", "sat", "on", "that", "old", "mat,", "größer", "猫", "said", "no"]


@functools.cache
def bpe(vocab_size: int = 300) -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 5, vocab_size)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


class Texts:
    """Documents in memory that note where they are read from; None is one that cannot be read."""

    def __init__(self, texts: Sequence[str | None], fingerprint: str = "x") -> None:
        self.texts = texts
        self.fingerprint = fingerprint
        self.starts: list[int] = []

    def read(self, start: int = 0) -> Iterator[Document]:
        self.starts.append(start)
        for i, text in enumerate(self.texts[start:], start):
            yield Document(text, f"doc[{i}]", "" if text is not None else "torn")


def tokens_in(folder: Path) -> list[int]:
    return np.fromfile(folder / "tokens.bin", dtype=json.loads((folder / "packed.json").read_text())["dtype"]).tolist()


def expected_tokens(texts: Sequence[str | None], tokenizer: Tokenizer) -> list[int]:
    """Every text's ids, encoded one by one, and the id that closes it."""
    return [i for text in texts if text for i in [*tokenizer.encode([text])[0].tolist(), tokenizer.eos_id]]


# --- files


def read(root: Path, document: str = "line") -> list[str | None]:
    return [found.text for found in TextFiles(str(root), document).read()]


def test_files_are_found_below_a_folder_in_order(tmp_path):
    folders = [f"sub/{letter}/c.txt" for letter in "mhzbkdxaq"]
    for name in ("b.txt", "a.txt.gz", *folders, "sub.txt", ".hidden.txt", "x.md", ".git/d.txt", "größe 猫.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(name.encode()) if name.endswith(".gz") else name.encode())
    found = ["a.txt.gz", "b.txt", "größe 猫.txt", *sorted(folders), "sub.txt"]
    assert read(tmp_path) == found
    assert [str(path.relative_to(tmp_path)) for path in TextFiles(str(tmp_path)).files()] == found
    assert read(tmp_path / "x.md") == ["x.md"]  # whoever names a file means it


def test_a_linked_folder_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("far\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "root") == ["far"]


def test_lines_of_every_platform(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\r\n  two\t\n\u2028three\x85\nlast".encode())
    assert read(tmp_path) == ["one", "", "two", "three", "last"]


def test_a_document_is_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\n"))
    (tmp_path / "c.txt").write_text("")
    assert read(tmp_path, "file") == ["one\n\ntwo", "three", ""]
    assert [document.name for document in TextFiles(str(tmp_path), "file").read()] == [
        str(path) for path in TextFiles(str(tmp_path)).files()
    ]


def test_reading_starts_anywhere(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"".join(f"{name}{i}\n".encode() for i in range(3)) + b"\xff\n")
    source = TextFiles(str(tmp_path))
    whole = list(source.read())
    assert len(whole) == 12
    for start in range(14):
        assert list(source.read(start)) == whole[start:]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_what_is_no_utf8_is_named_by_file_and_line(tmp_path, suffix):
    content = b"good\n\xff\xfe bad\n" + "naïve\n".encode() + "naïve\n".encode("latin-1") + b"cut \xe2\x82"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = list(TextFiles(str(tmp_path)).read())
    assert [document.text for document in found] == ["good", None, "naïve", None, None]
    assert [document.name for document in found] == [f"{path}:{line}" for line in range(1, 6)]
    assert found[1].reason == "not UTF-8 (invalid start byte at byte 0)"
    assert found[3].reason == "not UTF-8 (invalid continuation byte at byte 2)"
    assert found[4].reason == "not UTF-8 (unexpected end of data at byte 4)"


def test_a_truncated_archive_gives_its_lines_and_one_bad_document(tmp_path):
    lines = sentences(2000)
    content = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.txt.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.txt").write_text("next\n")
    *most, last = list(TextFiles(str(tmp_path)).read())
    assert last.text == "next"
    assert len(most) > 100
    assert [document.text for document in most[:-1]] == lines[: len(most) - 1]
    assert most[-1].text is None
    assert most[-1].name == f"{tmp_path}/a.txt.gz:{len(most)}"


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root=.*gone: no such file or folder; give a text file or"):
        TextFiles(str(tmp_path / "gone"))
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"files=.*: no text file there \(\.txt, \.txt\.gz\)"):
        TextFiles(str(tmp_path), key="files")


# --- packing


def test_the_file_holds_every_document_closed(tmp_path):
    texts = [*sentences(50), "", "x" * 5000, None, "größe 猫", ""]
    folder = pack(Texts(texts), bpe(), tmp_path)
    assert tokens_in(folder) == expected_tokens(texts, bpe())
    meta = json.loads((folder / "packed.json").read_text())
    assert (meta["documents"], meta["tokens"]) == (len(texts), len(expected_tokens(texts, bpe())))
    assert meta["bad"] == ["doc[52]: torn"]
    assert not (folder / "progress.json").exists()


def test_chunks_do_not_show(tmp_path, monkeypatch):
    texts = sentences(40)
    whole = tokens_in(pack(Texts(texts), bpe(), tmp_path / "whole"))
    for size in (1, 7, 40):
        monkeypatch.setattr(text_blocks, "_CHUNK", size)
        assert tokens_in(pack(Texts(texts), bpe(), tmp_path / str(size))) == whole


@pytest.mark.parametrize("block_size", [4, 16, 33])
def test_a_block_is_the_opening_token_and_the_next_of_the_file(tmp_path, block_size):
    texts = sentences(60)
    tokens = expected_tokens(texts, bpe())
    blocks = TokenBlocks(pack(Texts(texts), bpe(), tmp_path), block_size, bpe().bos_id)
    length = block_size - 1
    assert len(blocks) == len(tokens) // length
    for i in range(len(blocks)):
        block = blocks.load(i)
        assert block.dtype == np.int64
        assert block.tolist() == [bpe().bos_id, *tokens[i * length : (i + 1) * length]]
    assert (blocks.name(3), blocks.label(3), blocks.class_names) == ("block[3]", None, None)


def test_a_user_without_a_home_is_told_of_the_cache(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("D2V_CACHE", raising=False)
    with pytest.raises(ValueError, match=r"cache=None: ~/\.cache/d2v needs a home .* cache=DIR or D2V_CACHE"):
        cache_dir(None)
    monkeypatch.setenv("D2V_CACHE", "~/x")
    with pytest.raises(ValueError, match=r"D2V_CACHE=~/x: ~/x needs a home folder"):
        cache_dir(None)
    with pytest.raises(ValueError, match=r"root=~/x: this user has no home folder for ~; give the whole path"):
        TextFiles("~/x")


def test_the_last_partial_block_is_dropped(tmp_path):
    texts = sentences(5)
    total = len(expected_tokens(texts, bpe()))
    folder = pack(Texts(texts), bpe(), tmp_path)
    assert [len(TokenBlocks(folder, size, 0)) for size in (total, total + 1)] == [1, 1]
    with pytest.raises(ValueError, match=rf"block_size={total + 2}: .* has {total} .* at most {total + 1}$"):
        TokenBlocks(folder, total + 2, 0).check_not_empty()
    stream = BlockStream(Texts(texts), bpe(), total + 2)
    with pytest.raises(ValueError, match=rf"block_size={total + 2}: .* has {total} .* at most {total + 1}$"):
        next(iter(stream))
    with pytest.raises(ValueError, match=r"no text in these documents: .*\n  doc\[1\]: torn$"):
        next(iter(BlockStream(Texts(["", None]), bpe(), 8)))


def test_a_block_is_the_callers_own(tmp_path):
    blocks = TokenBlocks(pack(Texts(sentences(9)), bpe(), tmp_path), 8, 0)
    first = blocks.load(0).copy()
    blocks.load(0)[:] = 99
    assert blocks.load(0).tolist() == first.tolist()


def test_blocks_are_pickled_without_their_tokens(tmp_path):
    blocks = TokenBlocks(pack(Texts(sentences(3000)), bpe(), tmp_path), 16, 0)
    expected = blocks.load(5).tolist()
    content = pickle.dumps(blocks)
    assert len(content) < 1500
    assert pickle.loads(content).load(5).tolist() == expected
    assert blocks.load(5).tolist() == expected


def wide(first_id: int) -> Tokenizer:
    """The same tokens under large ids."""
    ids = np.arange(first_id, first_id + bpe().vocab_size, dtype=np.int32)
    return Tokenizer(library.Tokenizer.from_str(bpe().to_json()), ids=ids)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, vocab_size, dtype):
    tokenizer = wide(vocab_size - bpe().vocab_size)
    assert tokenizer.vocab_size == vocab_size
    texts = sentences(20)
    folder = pack(Texts(texts), tokenizer, tmp_path)
    tokens = expected_tokens(texts, tokenizer)
    assert np.fromfile(folder / "tokens.bin", dtype).tolist() == tokens
    blocks = TokenBlocks(folder, 8, tokenizer.bos_id)
    assert np.concatenate([blocks.load(i)[1:] for i in range(len(blocks))]).tolist() == tokens[: 7 * len(blocks)]


def test_nothing_to_pack(tmp_path):
    for texts, named in (([], ""), (["", ""], ""), ([None, ""], r"\n  doc\[0\]: torn")):
        message = f"no text in these documents: every one is empty or cannot be read{named}$"
        with pytest.raises(ValueError, match=message):
            pack(Texts(texts), bpe(), tmp_path)
        with pytest.raises(ValueError, match=message):
            cached_tokenizer(Texts(texts), 290, tmp_path)
    # And it is not remembered as packed, nor half packed.
    assert not [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]


def test_text_in_another_encoding_says_which_it_must_be(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xe9t\xe9\n" * 100)
    message = r"root=.*: 100 of the first 100 lines are not UTF-8: .*; convert it, for example with iconv -f LATIN1"
    for use in (
        lambda documents: pack(documents, bpe(), tmp_path),
        lambda documents: cached_tokenizer(documents, 290, tmp_path),
        lambda documents: list(BlockStream(documents, bpe(), 8)),
    ):
        with pytest.raises(ValueError, match=message):
            use(TextFiles(str(tmp_path)))


# --- packed once


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


# --- tokenizers and the cache's folder


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


# --- streams


@pytest.mark.parametrize("block_size", [4, 16])
def test_a_stream_gives_the_packed_blocks_in_order(tmp_path, block_size):
    texts = [*sentences(600), "", "x" * 5000, None, *sentences(300, 1)]
    blocks = TokenBlocks(pack(Texts(texts), bpe(), tmp_path), block_size, bpe().bos_id)
    stream = BlockStream(Texts(texts), bpe(), block_size)
    for _ in range(2):  # every epoch begins anew
        streamed = [stream.decode(record) for record in stream]
        assert [block.tolist() for block in streamed] == [blocks.load(i).tolist() for i in range(len(blocks))]
        assert {block.dtype for block in streamed} == {np.dtype(np.int64)}


def test_a_stream_names_what_it_cannot_read():
    blocks = list(BlockStream(Texts(["a cat", None, "a dog"]), bpe(), 4))
    assert [entry for block in blocks for entry in block.skipped] == ["doc[1]: torn"]


@pytest.mark.parametrize("block_size", [4, 64])
def test_a_stream_counts_the_documents_of_its_blocks(block_size):
    texts = [*sentences(600), None, "", "x" * 5000, *sentences(100, 1)]
    blocks = list(BlockStream(Texts(texts), bpe(), block_size))
    assert blocks[0].num_read == 256
    assert sum(block.num_read for block in blocks) == len(texts)
    assert sum(block.num_read > 0 for block in blocks) == 3


class Endless(Texts):
    def read(self, start: int = 0) -> Iterator[Document]:
        return itertools.repeat(Document("a cat", "doc"))


def test_a_stream_need_not_end():
    assert len(list(itertools.islice(BlockStream(Endless([]), bpe(), 8), 500))) == 500
