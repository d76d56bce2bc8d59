"""``d2v tokenizer train``: byte-level BPE on text files."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from d2v.cli.launch import configuring, run
from d2v.cli.settings import Tokenizer, checked, plain
from d2v.data.text_sources import TextFiles, texts_of
from d2v.data.tokenizer import train_tokenizer
from d2v.runs.files import replace_text, writing


def tokenizer(cfg: DictConfig) -> None:
    """Write a tokenizer.json, and say what it makes of the text."""
    with configuring():
        settings = checked(Tokenizer, plain(cfg))
        output = Path(settings.output)
        if output.is_dir():
            raise ValueError(f"output={output}: is a folder; give a file, such as {output / 'tokenizer.json'}")
        documents = TextFiles(settings.files, settings.document, "files")
        bad = [document for document in documents.read() if document.text is None]
        trained = train_tokenizer(texts_of(documents), settings.vocab_size, "vocab_size")
        with writing("output", output):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_text(output, trained.to_json())
    for document in bad:
        print(f"skipped {document.entry}")
    sample = [d.text for d, _ in zip((d for d in documents.read() if d.text), range(1000), strict=False) if d.text]
    num_bytes, num_tokens = sum(len(t.encode()) for t in sample), sum(len(ids) for ids in trained.encode(sample))
    print(f"tokenizer: {output}, {trained.vocab_size} tokens, {num_bytes / max(1, num_tokens):.2f} bytes a token")
    print(f"use it with data.tokenizer={output} data.vocab_size={trained.vocab_size}")


if __name__ == "__main__":
    sys.exit(run("tokenizer"))
