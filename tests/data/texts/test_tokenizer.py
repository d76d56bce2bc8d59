"""Byte-level BPE: what it encodes, which ids it gives, and the files it is read from."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.texts.tokenizer import SPECIALS, Tokenizer, load_tokenizer, train_tokenizer

library = pytest.importorskip("tokenizers")

TEXTS = ["the cat sat on the mat", "the other cat", "größe, naïve café", "猫がマットに座った"] * 5
SENTENCES = ["the cat", "  two  spaces\tand a tab", "größer 猫 \N{GRINNING FACE}", "", "x" * 3000]


@functools.cache
def trained(vocab_size: int = 300) -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size)


def ids_of(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer.encode(texts)]


def assert_same(a: Tokenizer, b: Tokenizer) -> None:
    assert ids_of(a, *SENTENCES) == ids_of(b, *SENTENCES)
    for name in ("vocab_size", "bos_id", "pad_id", "eos_id", "fingerprint"):
        assert getattr(a, name) == getattr(b, name), name


# --- our own


def names_no_special_token(text: str) -> bool:
    return not any(name in text for name in SPECIALS)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=60).filter(names_no_special_token), max_size=4))
def test_any_text_comes_back(texts):
    tokenizer = trained()
    encoded = tokenizer.encode(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    for ids in encoded:
        assert ids.dtype == np.int32
        assert ((ids >= len(SPECIALS)) & (ids < tokenizer.vocab_size)).all()


def test_every_byte_and_odd_characters_come_back():
    text = "".join(map(chr, range(256))) + "\u2028\ufeff\ufffd\U0010ffff\r\n"
    assert trained().decode(trained().encode([text])[0]) == text


def test_special_tokens_come_first_in_the_released_order():
    tokenizer = trained()
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert [vocab[name] for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    assert sorted(vocab.values()) == list(range(tokenizer.vocab_size))


def test_ids_that_open_close_and_pad_are_left_out_of_the_text():
    (ids,) = trained().encode(["the cat"])
    assert trained().decode([0, *ids, 2, 1, 1]) == "the cat"


def test_frequent_words_become_one_token():
    assert [len(ids) for ids in ids_of(trained(), " the", " zqx")] == [1, 4]


def test_training_repeats_and_reads_lists_of_documents():
    assert train_tokenizer(TEXTS, 300).to_json() == trained().to_json()
    assert train_tokenizer(iter([TEXTS[:7], TEXTS[7:]]), 300).to_json() == trained().to_json()


def test_a_vocabulary_needs_the_bytes_and_the_special_tokens():
    smallest = train_tokenizer(TEXTS, 261)
    assert smallest.vocab_size == 261
    assert len(smallest.encode(["größe"])[0]) == len("größe".encode())
    with pytest.raises(ValueError, match="vocab_size=260: 5 special tokens and 256 bytes need 261"):
        train_tokenizer(TEXTS, 260)


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one():
    tokenizer = train_tokenizer(["ab"], 5000)
    assert 261 <= tokenizer.vocab_size < 300


def test_nothing_to_encode():
    assert trained().encode([]) == []
    assert trained().encode([""])[0].shape == (0,)
    assert trained().decode([]) == ""


def test_the_fingerprint_tells_tokenizers_apart():
    others = [train_tokenizer(TEXTS, 301), train_tokenizer(["quite another text"] * 5, 300)]
    assert len({tokenizer.fingerprint for tokenizer in (trained(), *others)}) == 3
    assert train_tokenizer(TEXTS, 300).fingerprint == trained().fingerprint


# --- files


def test_pickled():
    assert_same(pickle.loads(pickle.dumps(trained())), trained())


def test_read_from_its_text_a_file_and_a_folder(tmp_path, monkeypatch):
    text = trained().to_json()
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (text, f"\n{text}", tmp_path / "tokenizer.json", str(tmp_path), "~/tokenizer.json"):
        read = load_tokenizer(source)
        assert_same(read, trained())
        assert read.to_json() == text


def hugging_face(*specials: str) -> library.Tokenizer:
    """As those on the Hub: padded, cut and wrapped unless it is told otherwise."""
    vocab = {name: i for i, name in enumerate([*specials, "[UNK]", "the", "cat", "sat"])}
    backend = library.Tokenizer(library.models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = library.pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(specials))
    if "[CLS]" in vocab:
        backend.post_processor = library.processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    backend.enable_padding(pad_id=0, length=8)
    backend.enable_truncation(2)
    return backend


def test_a_tokenizer_from_hugging_face(tmp_path):
    path = tmp_path / "tokenizer.json"
    hugging_face("[PAD]", "[SEP]", "[CLS]").save(str(path))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size) == (0, 1, 2, 7)
    assert ids_of(tokenizer, "the cat sat the dog", "cat") == [[4, 5, 6, 4, 3], [5]]
    assert ids_of(load_tokenizer(tokenizer.to_json()), "the cat sat the dog") == [[4, 5, 6, 4, 3]]
    assert ids_of(pickle.loads(pickle.dumps(tokenizer)), "the cat sat the dog") == [[4, 5, 6, 4, 3]]


def word_level(path, *specials):
    backend = library.Tokenizer(library.models.WordLevel({name: i for i, name in enumerate([*specials, "the"])}))
    backend.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    ("specials", "roles"),
    [
        (["<|endoftext|>"], (0, 2, 0)),  # as GPT-2: one token between texts, none for padding
        (["<s>", "</s>"], (0, 3, 1)),  # as Llama
        (["<pad>", "</s>"], (1, 0, 1)),  # as T5
        (["[CLS]", "[SEP]", "[PAD]"], (0, 2, 1)),  # as BERT
    ],
)
def test_tokens_that_a_tokenizer_lacks(tmp_path, specials, roles):
    tokenizer = load_tokenizer(word_level(tmp_path, *specials))
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == roles
    assert tokenizer.vocab_size == len({*specials, "the"} | ({"pad"} if tokenizer.pad_id > len(specials) else set()))
    for copy in (load_tokenizer(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):
        assert (copy.bos_id, copy.pad_id, copy.eos_id, copy.vocab_size) == (*roles, tokenizer.vocab_size)
        assert copy.fingerprint == tokenizer.fingerprint


def saved(path: Path, specials: list[str], processor: Any = None, config: dict[str, Any] | None = None) -> Path:
    """A tokenizer as on the Hub: ids in the order of ``specials``, then two words."""
    backend = library.Tokenizer(library.models.WordLevel({name: i for i, name in enumerate([*specials, "the", "cat"])}))
    backend.pre_tokenizer = library.pre_tokenizers.Whitespace()
    if processor:
        backend.post_processor = library.processors.TemplateProcessing(
            single=processor, special_tokens=[(name, specials.index(name)) for name in processor if name != "$A"]
        )
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def assert_roles(tokenizer: Tokenizer, bos: int, pad: int, eos: int) -> None:
    """Also of what a checkpoint holds and of what a worker gets."""
    for copy in (tokenizer, load_tokenizer(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):
        assert (copy.bos_id, copy.pad_id, copy.eos_id) == (bos, pad, eos)
        assert (copy.vocab_size, copy.fingerprint) == (tokenizer.vocab_size, tokenizer.fingerprint)
        assert ids_of(copy, "the cat") == ids_of(tokenizer, "the cat")
        assert copy.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("specials", "roles"),
    [
        (["<pad>", "<eos>", "<bos>"], (2, 0, 1)),  # Gemma
        (["<|begin▁of▁sentence|>", "<|end▁of▁sentence|>"], (0, 4, 1)),
        (["<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"], (0, 4, 1)),  # DeepSeek
        (["<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>"], (1, 0, 2)),  # Cohere
        (["<|begin_of_text|>", "<|end_of_text|>"], (0, 4, 1)),  # Llama 3
    ],
)
def test_openers_and_closers_are_known_by_name(tmp_path, specials, roles):
    assert_roles(load_tokenizer(saved(tmp_path, specials)), *roles)


@pytest.mark.parametrize(
    ("processor", "roles"),
    [
        (["<o>", "$A", "<c>"], (1, 5, 2)),
        (["<o>", "$A"], (1, 5, 1)),  # nothing closes: what opens does
        (["$A", "<c>"], (2, 5, 2)),
        (["<x>", "<o>", "$A", "<c>", "<x>"], (1, 5, 2)),  # languages around them, as in mBART
    ],
)
def test_what_a_tokenizer_puts_around_a_text_opens_and_closes_it(tmp_path, processor, roles):
    assert_roles(load_tokenizer(saved(tmp_path, ["<x>", "<o>", "<c>"], processor)), *roles)


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        ({"bos_token": "<o>", "eos_token": "<c>", "pad_token": "<p>"}, (0, 2, 1)),
        ({"bos_token": {"content": "<o>", "special": True}, "eos_token": {"content": "<c>"}}, (0, 5, 1)),
        ({"cls_token": "<o>", "sep_token": "<c>", "bos_token": None}, (0, 5, 1)),
        ({"bos_token": None, "eos_token": "<c>", "pad_token": "<c>"}, (1, 5, 1)),  # Qwen: padding would hide the ends
        ({"bos_token": "<o>", "eos_token": "<gone>"}, (0, 5, 0)),
    ],
)
def test_the_configuration_beside_a_tokenizer_names_its_tokens(tmp_path, config, roles):
    path = saved(tmp_path, ["<o>", "<c>", "<p>"], None, config)
    assert_roles(load_tokenizer(path), *roles)
    assert_roles(load_tokenizer(path / "tokenizer.json"), *roles)


def test_what_a_tokenizer_does_goes_before_what_is_said_and_names_come_last(tmp_path):
    config = {"bos_token": "<c>", "eos_token": "<c>", "pad_token": "<p>"}
    specials = ["<o>", "<c>", "<p>", "<s>", "</s>", "<pad>"]
    assert_roles(load_tokenizer(saved(tmp_path, specials, ["<o>", "$A"], config)), 0, 2, 1)
    (tmp_path / "tokenizer_config.json").unlink()
    assert_roles(load_tokenizer(tmp_path), 0, 5, 4)


def test_roles_from_the_configuration_are_part_of_the_fingerprint(tmp_path):
    specials = ["<s>", "</s>", "<c>"]
    plain = load_tokenizer(saved(tmp_path, specials))
    other = load_tokenizer(saved(tmp_path, specials, None, {"eos_token": "<c>"}))
    same = load_tokenizer(saved(tmp_path, specials, None, {"eos_token": "</s>"}))
    assert plain.fingerprint == same.fingerprint != other.fingerprint


def test_a_damaged_configuration_beside_a_tokenizer(tmp_path):
    saved(tmp_path, ["<s>"])
    for content in ("", "[1]", "{"):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer=.*tokenizer_config\.json: damaged .* remove it"):
            load_tokenizer(tmp_path)


def test_padding_that_was_switched_on_by_mistake_is_not_believed(tmp_path):
    path = str(saved(tmp_path, ["!", "<s>", "</s>"]) / "tokenizer.json")
    backend = library.Tokenizer.from_file(path)
    backend.enable_padding()  # id 0, "[PAD]"
    backend.save(path)
    assert_roles(load_tokenizer(path), 1, 5, 2)


def test_a_tokenizer_must_have_a_token_between_texts(tmp_path):
    message = r"no token that opens or closes a text; it needs one of <s>, \[CLS\]"
    with pytest.raises(ValueError, match=rf"tokenizer=.*tokenizer\.json: .*{message}"):
        load_tokenizer(word_level(tmp_path, "[PAD]"))


def test_what_is_no_tokenizer(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"tokenizer=.*gone: no such file; train one with d2v tokenizer"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"x\.tok=.*: holds neither tokenizer\.json nor encoder\.json"):
        load_tokenizer(tmp_path, "x.tok")
    for content in ("", "hello", "[1, 2]", "3", '{"a": 1}', '{"ids": [1], "tokenizer": {}}', trained().to_json()[:-9]):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer=.*tokenizer\.json: not a tokenizer\.json"):
            load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs the package tokenizers: pip install tokenizers"):
        train_tokenizer(TEXTS, 300)


# --- the released models' layout

ALPHABET = sorted(library.pre_tokenizers.ByteLevel.alphabet())
VOCAB = {symbol: i for i, symbol in enumerate([*ALPHABET, "he", "Ġt", "Ġthe", "<|endoftext|>"])}
MERGES = "#version: 0.2\nh e\nĠ t\nĠt he\n"
LACKING = ("z", "Ġt", "i")
LISTED = ["Ġthe", "e", "he", "Ġ", "<|endoftext|>", "h"]
LISTED += [symbol for symbol in VOCAB if symbol not in (*LISTED, *LACKING)]
SYMBOLS = [str(VOCAB[symbol]) for symbol in LISTED] + ["madeupword0000"]


def released(folder: Path, symbols: list[str] = SYMBOLS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps(VOCAB))
    (folder / "vocab.bpe").write_text(MERGES)
    (folder / "dict.txt").write_text("".join(f"{symbol} {1000 - i}\n" for i, symbol in enumerate(symbols)))
    return folder


def fairseq_dictionary(symbols: list[str]) -> dict[str, int]:
    """Id of every symbol, as fairseq's Dictionary and its masked language model's task number them."""
    return {s: i for i, s in enumerate(["<s>", "<pad>", "</s>", "<unk>", *symbols, "<mask>"])}


def test_released_ids_are_fairseqs(tmp_path):
    tokenizer, number = load_tokenizer(released(tmp_path)), fairseq_dictionary(SYMBOLS)
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == len(number) == number["<mask>"] + 1
    bpe = ["he", "Ġthe", "Ġ", "e", "h", "z", "Ġt", "i"]  # of the text below; the last three are not in dict.txt
    expected = [number.get(str(VOCAB[symbol]), number["<unk>"]) for symbol in bpe]
    assert ids_of(tokenizer, "he the ehz ti") == [expected]
    assert expected[-3:] == [3, 3, 3]
    assert tokenizer.encode(["he"])[0].dtype == np.int32
    assert tokenizer.decode(tokenizer.encode(["he the eh"])[0]) == "he the eh"


def test_released_text_that_looks_like_a_special_token_is_text(tmp_path):
    tokenizer = load_tokenizer(released(tmp_path))
    for text in ("<s>", "<pad>", "</s>", "<|endoftext|>"):
        assert len(tokenizer.encode([text])[0]) == len(text)


def test_released_is_kept_as_text_and_pickled(tmp_path):
    tokenizer = load_tokenizer(released(tmp_path))
    for copy in (load_tokenizer(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):
        assert_same(copy, tokenizer)
        assert copy.to_json() == tokenizer.to_json()
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert_same(load_tokenizer(tmp_path / "tokenizer.json"), tokenizer)


def test_released_fingerprint_depends_on_the_dictionary(tmp_path):
    one, other = load_tokenizer(released(tmp_path / "a")), load_tokenizer(released(tmp_path / "b", SYMBOLS[::-1]))
    assert one.fingerprint != other.fingerprint
    assert ids_of(one, "he") != ids_of(other, "he")


@pytest.mark.parametrize("missing", ["encoder.json", "vocab.bpe"])
def test_released_with_a_file_missing(tmp_path, missing):
    (released(tmp_path) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"tokenizer=.*: has dict\.txt but no {missing}; put it beside"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("² 5\n", r"dict\.txt:1: '² 5' is not \"ID COUNT\""),
        ("13 5\n262\t4\n", r"dict\.txt:2: '262\\t4' is not \"ID COUNT\""),
        ("13 5\n\n\nthe 4\n", r"dict\.txt:4: 'the 4' is not \"ID COUNT\""),
        ("13 5\n14 ²\n", r"dict\.txt:2: '14 ²' is not"),
        ("13 5\n14", r"dict\.txt:2: '14' is not"),
        ("13 5\n50256 4\n", r"dict\.txt:2: encoder\.json has no id 50256; give the dict\.txt that belongs to it"),
        ("", r"dict\.txt lists 0 of the 260 ids of encoder\.json.* <unk>; give"),
        ("".join(f"{i} 1\n" for i in range(194)), r"dict\.txt lists 194 of the 260 ids"),
    ],
)
def test_a_dictionary_that_does_not_fit(tmp_path, content, message):
    (released(tmp_path) / "dict.txt").write_text(content)
    with pytest.raises(ValueError, match=rf"tokenizer={tmp_path}: {message}"):
        load_tokenizer(tmp_path)


def test_a_dictionary_may_lack_a_few_ids_and_it_is_said(tmp_path, caplog):
    load_tokenizer(released(tmp_path))
    assert "dict.txt lacks 3 of the 260 ids of encoder.json: they are read as <unk>" in caplog.text
    caplog.clear()
    load_tokenizer(released(tmp_path, [str(i) for i in VOCAB.values()]))
    assert not caplog.text
    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(195)))  # three quarters
    assert load_tokenizer(tmp_path).vocab_size == 200


@pytest.mark.parametrize("content", ["[1]", "{}", '{"a": "b"}', "3"])
def test_an_encoder_that_is_none(tmp_path, content):
    (released(tmp_path) / "encoder.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer=.*: encoder\.json is no object of tokens and their ids"):
        load_tokenizer(tmp_path)
