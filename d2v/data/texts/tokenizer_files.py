"""Check of foreign tokenizer files, before the library ``tokenizers`` uses them.

A tokenizer.json is a small program of patterns that split texts and replacements that rewrite them. It executes no
code, but could take exponential time, or replace every letter by a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from d2v.bounds import parse_json
from d2v.patterns import check_pattern

MAX_IDS = 16_000_000  # of a vocabulary; the largest published ones have 260,000
MAX_STEPS = 64  # normalizers, splits and decoders
MAX_GROWTH = 1_000  # of a text by all replacements together

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def parse_tokenizer(text: str) -> dict[str, Any]:
    """Return what a tokenizer.json, Hugging Face's or ours, describes.

    Raises:
        ValueError: it is not JSON, no tokenizer, or describes what takes unbounded time or memory.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    backend = content["tokenizer"] if "ids" in content and "tokenizer" in content else content
    if not isinstance(backend, dict):
        raise ValueError("its 'tokenizer' is no object")
    steps = [step for name in _STEPS for step in _objects(backend.get(name))]
    if sum("type" in step for step in steps) > MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS} steps")
    growth = 1
    for step in steps:
        if isinstance(step.get("Regex"), str):
            check_pattern(step["Regex"])
        if step.get("type") in ("Replace", "Prepend"):
            growth *= max(1, len(str(step.get("content", step.get("prepend", "")))))
        if growth > MAX_GROWTH:
            raise ValueError(f"its replacements make texts more than {MAX_GROWTH} times longer")
    check_ids(_ids(backend))
    return content


def check_ids(ids: Iterator[Any]) -> None:
    """Raise ValueError unless all are whole numbers, from 0 on and not absurdly large."""
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < MAX_IDS:
            raise ValueError(f"the id {i!r}: ids are whole numbers from 0 to {MAX_IDS:,}")


def own_ids(content: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Return our ids of the backend's, and the size of the vocabulary, of a tokenizer file of ours.

    Raises:
        ValueError: they do not fit together.
    """
    ids, vocab_size = content["ids"], content["vocab_size"]
    if not isinstance(ids, list) or not ids:
        raise ValueError("its 'ids' are no list of ids")
    check_ids(iter([*ids, vocab_size]))
    if max(ids) >= vocab_size:
        raise ValueError(f"its 'ids' go up to {max(ids)}, its vocab_size is {vocab_size}")
    return np.asarray(ids, np.int32), vocab_size


def _objects(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in a part of a tokenizer file; its depth was checked."""
    if isinstance(node, Mapping):
        yield node
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _objects(value)


def _ids(backend: Mapping[str, Any]) -> Iterator[Any]:
    model = backend.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, Mapping):
        yield from vocab.values()
    added = backend.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, Mapping):
            yield token.get("id")
