"""Tokenizer files that would run for ever, fill the memory or end the interpreter are refused with the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2v.data.texts.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def good() -> str:
    return train_tokenizer(["a text of some words"], 300).to_json()


Edit = Callable[[dict[str, Any]], Any]
REFUSED: dict[str, tuple[Edit, str]] = {
    "an endless pattern": (
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                                          "invert": False}),
        "repeats a group",
    ),
    "an endless pattern in a sequence": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "(x|x)*y"}, "content": ""}]}),
        "repeats a group",
    ),
    "replacements that multiply": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12}),
        "times longer",
    ),
    "many steps": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}),
        "steps",
    ),
    "a huge id": (lambda t: t["model"]["vocab"].update(a=4294967295), "id 4294967295"),
    "a huge id of an added token": (lambda t: t["added_tokens"][0].update(id=1 << 31), "id 2147483648"),
    "an id that is none": (lambda t: t["model"]["vocab"].update(a="x"), "id 'x'"),
    "a model that is none": (lambda t: t.update(model={"type": "Nothing"}), "not a tokenizer"),
    "nested too deep": (lambda t: t.update(decoder=json.loads("[" * 90 + "]" * 90)), "deep"),
    "a damaged table of characters": (
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "not a tokenizer"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, good: str, tmp_path: Path) -> None:
    edit, words = REFUSED[name]
    content = json.loads(good)
    edit(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"tokenizer=.*{words}"):
        load_tokenizer(path)
    with pytest.raises(ValueError, match=rf"tokenizer: .*{words}"):
        load_tokenizer(json.dumps(content))
    ours = {"tokenizer": content, "ids": [0], "vocab_size": 1}
    with pytest.raises(ValueError, match=words):
        load_tokenizer(json.dumps(ours))


OURS: dict[str, tuple[dict[str, Any], str]] = {
    "a negative id": ({"ids": [-5], "vocab_size": 300}, "id -5"),
    "a huge vocabulary": ({"ids": [0], "vocab_size": 1 << 40}, "id 1099511627776"),
    "an id outside of the vocabulary": ({"ids": [300], "vocab_size": 300}, "vocab_size is 300"),
    "no ids": ({"ids": [], "vocab_size": 300}, "no list"),
    "a fraction": ({"ids": [0.5], "vocab_size": 300}, "id 0.5"),
    "no vocabulary": ({"ids": [0]}, "vocab_size"),
}


@pytest.mark.parametrize("name", OURS)
def test_our_own_files_fit_together(name: str, good: str) -> None:
    content, words = OURS[name]
    with pytest.raises(ValueError, match=rf"tokenizer: .*{words}"):
        load_tokenizer(json.dumps({"tokenizer": json.loads(good), **content}))


@pytest.mark.parametrize("text", ["{", "{}", '{"ids": 1, "tokenizer": []}', '{"model": []}', "{" * 1000])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer: not a tokenizer"):
        load_tokenizer(text)


def test_padding_of_a_file_pads_nothing(good: str) -> None:
    content = json.loads(good)
    content["padding"] = {
        "strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    expected = [ids.tolist() for ids in load_tokenizer(good).encode(["a text"])]
    assert [ids.tolist() for ids in load_tokenizer(json.dumps(content)).encode(["a text"])] == expected
    ids = list(range(300))
    ours = load_tokenizer(json.dumps({"tokenizer": content, "ids": ids, "vocab_size": 300}))
    assert [found.tolist() for found in ours.encode(["a text"])] == expected


def test_a_released_dictionary_with_a_huge_id(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 10**12}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    (tmp_path / "dict.txt").write_text("0 1\n")
    with pytest.raises(ValueError, match=r"encoder\.json is no object"):
        load_tokenizer(tmp_path)
