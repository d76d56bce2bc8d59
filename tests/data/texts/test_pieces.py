"""Long documents in pieces: no byte lost, the same tokens, bounded memory; long words in parts."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc

import numpy as np
import pytest

from d2v.data.texts import blocks as text_blocks
from d2v.data.texts import documents as text_sources
from d2v.data.texts.block_stream import BlockStream
from d2v.data.texts.blocks import TokenBlocks, pack
from d2v.data.texts.documents import TextFiles, pieces
from d2v.data.texts.tokenizer import LONGEST_WORD, load_tokenizer, train_tokenizer
from d2v.data.texts.whole_documents import PackedDocuments

pytest.importorskip("tokenizers")

WORDS = ["a", "cat", "größer", "猫", "mat,", "\n", "sat\t", " ", "don't"]


def prose(count: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, count))


@pytest.fixture
def tokenizer():
    return train_tokenizer([prose(500)], 300)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(text_sources, "PIECE", 50)
    monkeypatch.setattr(text_blocks, "CHUNK_CHARACTERS", 120)


@pytest.mark.parametrize("document", ["line", "file"])
@pytest.mark.parametrize("size", [8, 9, 10, 11, 50])
@pytest.mark.parametrize(
    "text",
    ["", "\n", "a\n\nb", "a cat  sat\non a mat", "猫" * 40, "é" * 31 + "\n", "x" * 40, "12345678", " " * 50, prose(60)],
)
def test_pieces_are_the_text_cut_between_letters(monkeypatch, text, size, document):
    monkeypatch.setattr(text_sources, "PIECE", size)
    found = list(pieces(io.BytesIO(text.encode()), document))
    assert b"".join(content for content, _, _ in found).decode() == text
    for content, _, _ in found:
        content.decode()
        assert len(content) <= 2 * size
    documents = text.splitlines() if document == "line" else [text]
    if document == "line" and set(text) <= set("\n"):
        documents = text.split("\n")[:-1]
    assert sum(starts for _, starts, _ in found) == sum(ends for _, _, ends in found) == len(documents)


def test_a_document_in_pieces_has_the_tokens_of_the_whole(tmp_path, tokenizer, small_pieces):
    texts = [prose(count, seed) for seed, count in enumerate((3, 400, 0, 90))]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(f"\n {text} \n\n")
    documents = TextFiles(str(tmp_path), "file")
    assert sum(1 for _ in documents.read()) > 20
    blocks = TokenBlocks(pack(documents, tokenizer, tmp_path / "cache"), 16, tokenizer.bos_id)
    whole = [tokenizer.encode([text.strip()])[0].tolist() for text in texts if text]
    assert blocks.tokens(0, blocks.num_tokens).tolist() == [i for ids in whole for i in [*ids, tokenizer.eos_id]]
    assert blocks.num_documents == 4
    packed = PackedDocuments(blocks, documents, tokenizer.eos_id, 10**6)
    assert [packed.load(i).tolist() for i in range(3)] == whole
    assert [packed.name(i) for i in range(3)] == [str(tmp_path / f"{i}.txt") for i in (0, 1, 3)]
    streamed = np.concatenate([block.tokens[1:] for block in BlockStream(documents, tokenizer, 16)])
    assert streamed.tolist() == blocks.tokens(0, len(streamed)).tolist()
    assert sum(block.num_read for block in BlockStream(documents, tokenizer, 16)) == 4


@pytest.mark.parametrize("document", ["line", "file"])
def test_packing_goes_on_within_a_document(tmp_path, tokenizer, small_pieces, monkeypatch, document):
    (tmp_path / "a.txt").write_text(prose(40) + "\n" + prose(300).replace("\n", "-") + "\nend\n")
    documents = TextFiles(str(tmp_path / "a.txt"), document)
    whole = pack(documents, tokenizer, tmp_path / "whole")
    expected = (whole / "tokens.bin").read_bytes()
    encode, calls = text_blocks.encode_chunk, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(text_blocks, "encode_chunk", dying)
    for _ in range(100):
        try:
            folder = pack(documents, tokenizer, tmp_path / "torn")
            break
        except KeyboardInterrupt:
            progress = next((tmp_path / "torn").glob("packed/*/progress.json"))
            assert json.loads(progress.read_text())["pieces"] > 0
    assert len(calls) > 6
    assert (folder / "tokens.bin").read_bytes() == expected
    assert (folder / "packed.json").read_text() == (whole / "packed.json").read_text()


@pytest.mark.parametrize("start", range(0, 12))
def test_reading_goes_on_at_any_piece_and_behind_a_damaged_file(tmp_path, small_pieces, start):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(prose(60).encode())[:-30])
    (tmp_path / "b.txt").write_text(prose(60, 1))
    documents = TextFiles(str(tmp_path))
    whole = list(documents.read())
    assert len(whole) > 12
    assert list(documents.read(start)) == whole[start:]


def test_a_bad_piece_is_left_out_and_named_by_its_place(tmp_path, tokenizer, small_pieces):
    content = b"ab cd " * 20 + b"\xff " + b"ef gh " * 20 + b"\n" + b"next\n"
    (tmp_path / "a.txt").write_bytes(content)
    documents = list(TextFiles(str(tmp_path)).read())
    bad = [document for document in documents if document.text is None]
    assert [document.name for document in bad] == [f"{tmp_path / 'a.txt'}:1"]
    assert bad[0].reason == "not UTF-8 (invalid start byte at byte 120)"
    folder = pack(TextFiles(str(tmp_path)), tokenizer, tmp_path / "cache")
    meta = json.loads((folder / "packed.json").read_text())
    assert (meta["documents"], len(meta["bad"])) == (2, 1)
    tokens = np.fromfile(folder / "tokens.bin", meta["dtype"])
    assert (tokens == tokenizer.eos_id).sum() == 2


def test_packing_holds_a_few_documents_at_a_time(tmp_path, tokenizer, monkeypatch):
    """Not the corpus, and not 4,096 documents."""
    monkeypatch.setattr(text_sources, "PIECE", 2**14)
    monkeypatch.setattr(text_blocks, "CHUNK_CHARACTERS", 2**15)
    (tmp_path / "books").mkdir()
    for i in range(12):
        (tmp_path / "books" / f"{i}.txt").write_text(prose(30_000, i))
    largest = []
    encode = text_blocks.encode_chunk

    def counting(documents, *arguments):
        largest.append(sum(len(document.text or "") for document in documents))
        return encode(documents, *arguments)

    monkeypatch.setattr(text_blocks, "encode_chunk", counting)
    tracemalloc.start()
    pack(TextFiles(str(tmp_path / "books"), "file"), tokenizer, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(largest) < 2**15 + 2**15
    assert sum(largest) > 1_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize("letters", ["ACGT", "猫犬鳥魚馬"])
def test_a_tokenizer_learns_from_one_giant_word(letters):
    """The time to train does not grow with the square of the word's length."""
    word = "".join(np.random.default_rng(0).choice(list(letters), 100_000))
    tokenizer = train_tokenizer([word], 400)
    (ids,) = tokenizer.encode([word])
    assert tokenizer.decode(ids.tolist()) == word
    assert len(ids) < len(word.encode()) / 2
    assert load_tokenizer(tokenizer.to_json()).encode([word])[0].tolist() == ids.tolist()


def test_words_up_to_the_longest_are_whole_and_longer_ones_are_parted(tokenizer):
    word = "ab" * (LONGEST_WORD // 2 - 1)
    pre = tokenizer._backend.pre_tokenizer

    def lengths(text: str) -> list[int]:
        return [len(part) for part, _ in pre.pre_tokenize_str(text)]

    assert lengths(f"{word} {word}") == [LONGEST_WORD - 2, LONGEST_WORD - 1]
    assert lengths(f"{word}abc") == [LONGEST_WORD, 1]
    assert lengths("猫" * 300) == [LONGEST_WORD, 900 - LONGEST_WORD]
