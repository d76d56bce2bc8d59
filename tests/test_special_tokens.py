"""Roles of special tokens, as the library ``tokenizers`` itself encodes, whatever its post-processor."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d2v.special_tokens import NAMES, find_roles, token_ids

tokenizers = pytest.importorskip("tokenizers")
processors = tokenizers.processors

VOCAB = {name: i for i, name in enumerate(["<x>", "<o>", "<c>", "<s>", "</s>", "[UNK]", "a"])}


def template(*pieces: str) -> Any:
    special = [(name, VOCAB[name]) for name in dict.fromkeys(pieces) if name != "$A"]
    return processors.TemplateProcessing(single=list(pieces), special_tokens=special)


PROCESSORS = {
    "bert": processors.BertProcessing(("<c>", 2), ("<o>", 1)),
    "roberta": processors.RobertaProcessing(("<c>", 2), ("<o>", 1)),
    "template": template("<o>", "$A", "<c>"),
    "languages": template("<x>", "<o>", "$A", "<c>", "<x>"),
    "sequence": processors.Sequence([processors.ByteLevel(), template("<o>", "$A", "<c>")]),
}


def backend(processor: Any = None, vocab: dict[str, int] = VOCAB) -> Any:
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if processor is not None:
        found.post_processor = processor
    return found


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_tokens_around_a_text_open_and_close_it(name: str) -> None:
    library = backend(PROCESSORS[name])
    encoded = library.encode("a").ids
    place = encoded.index(VOCAB["a"])
    roles = find_roles(json.loads(library.to_str()))
    assert (roles["bos"], roles["eos"]) == (encoded[place - 1], encoded[place + 1]) == (1, 2)


def test_without_a_post_processor_the_configuration_and_then_the_names_decide() -> None:
    for processor in (None, processors.ByteLevel()):
        content = json.loads(backend(processor).to_str())
        assert find_roles(content) == {"bos": 3, "eos": 4, "unk": 5}
        assert find_roles(content, {"eos_token": "<c>", "pad_token": "<x>"}) == {"bos": 3, "eos": 2, "pad": 0, "unk": 5}
        assert find_roles(content, {"cls_token": "<o>", "bos_token": "<gone>"})["bos"] == 1


def test_the_unknown_token_is_that_of_the_model() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "?": 1, "<s>": 2}, unk_token="?"))
    assert find_roles(json.loads(library.to_str()))["unk"] == 1


def test_padding_counts_if_its_token_has_its_id_and_is_not_the_one_between_texts() -> None:
    library = backend()
    library.enable_padding(pad_id=0, pad_token="<x>")
    assert find_roles(json.loads(library.to_str()))["pad"] == 0
    library.enable_padding(pad_id=1, pad_token="<x>")
    assert "pad" not in find_roles(json.loads(library.to_str()))
    library.enable_padding(pad_id=4, pad_token="</s>")
    assert "pad" not in find_roles(json.loads(library.to_str()))


def test_ids_of_every_kind_of_vocabulary() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("a", -1.0)]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=False))
    unigram.add_special_tokens(["[MASK]"])
    content = json.loads(unigram.to_str())
    assert token_ids(content) == unigram.get_vocab(with_added_tokens=True)
    assert find_roles(content) == {"bos": 1, "eos": 1, "pad": 0, "mask": 3}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names])
def test_every_name_is_known(role: str, name: str) -> None:
    vocab = {"[UNK]": 0, "a": 1, "<s>" if role == "eos" else "</s>": 2}
    vocab.setdefault(name, 3)
    expected = 0 if name == "<unk>" else vocab[name]  # the model's own goes first
    assert find_roles(json.loads(backend(vocab=vocab).to_str()))[role] == expected
