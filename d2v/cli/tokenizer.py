"""``d2v tokenizer train``: byte-level BPE on text files."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from d2v.bounds import read_json
from d2v.cli.launch import configuring, run
from d2v.cli.settings import Tokenizer, checked, plain
from d2v.data.contents import visible
from d2v.data.texts.documents import TextFiles, texts_of
from d2v.data.texts.tokenizer import train_tokenizer
from d2v.runs.exports import SUMS
from d2v.runs.files import refuse_foreign, replace_text, writing
from d2v.runs.record import RECORD


def tokenizer(cfg: DictConfig) -> None:
    """Train a tokenizer, write it as tokenizer.json, and print its bytes per token."""
    with configuring(cfg):
        settings = checked(Tokenizer, plain(cfg))
        output = Path(settings.output)
        if output.is_dir():
            raise ValueError(f"output={output}: is a folder; give a file, such as {output / 'tokenizer.json'}")
        if output.suffix != ".json":
            raise ValueError(f"output={output}: the name must end in .json")
        refuse_foreign(output, "output", _is_tokenizer, "tokenizer")
        if any((output.parent / name).is_file() for name in (RECORD, SUMS)):
            raise ValueError(f"output={output}: {output.parent} is a run or an export; choose another folder")
        documents = TextFiles(settings.files, settings.document, "files")
        bad = [document for document in documents.read() if document.text is None]
        trained = train_tokenizer(texts_of(documents), settings.vocab_size, "vocab_size")
        with writing("output", output):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_text(output, trained.to_json())
    for document in bad:
        print(visible(f"skipped {document.entry}"))
    sample = [d.text for d, _ in zip((d for d in documents.read() if d.text), range(1000), strict=False) if d.text]
    num_bytes, num_tokens = sum(len(t.encode()) for t in sample), sum(len(ids) for ids in trained.encode(sample))
    print(f"tokenizer: {output}, {trained.vocab_size} tokens, {num_bytes / max(1, num_tokens):.2f} bytes a token")
    print(f"use it with data.tokenizer={output} data.vocab_size={trained.vocab_size}")


def _is_tokenizer(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and isinstance(content.get("model"), dict)


if __name__ == "__main__":
    sys.exit(run("tokenizer"))
