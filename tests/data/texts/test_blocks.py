"""Documents in files, packed into one file of tokens, and blocks of it."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packed_texts import Texts, bpe, expected_tokens, tokens_in
from small_texts import sentences

from d2v.data.texts import blocks as text_blocks
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks, cache_dir, cached_tokenizer, pack
from d2v.data.texts.documents import Document, TextFiles
from d2v.data.texts.tokenizer import Tokenizer

library = pytest.importorskip("tokenizers")


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
