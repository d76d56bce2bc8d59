"""Documents and tokenizers to pack."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from small_texts import WORDS

from d2v.data.texts.documents import Document
from d2v.data.texts.tokenizer import Tokenizer, train_tokenizer


@functools.cache
def bpe(vocab_size: int = 300) -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 5, vocab_size)


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
