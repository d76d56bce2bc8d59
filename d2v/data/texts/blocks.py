"""Packing of documents into one memory-mapped file of tokens, which is read block by block.

Each document's tokens are followed by the closing token. A block is the opening token and the next ``block_size`` - 1
tokens of the file, across document boundaries, as in the released text models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from d2v.data.contents import Contents
from d2v.data.texts.documents import Document, Documents, no_text, texts_of
from d2v.data.texts.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from d2v.runs.files import replace_text

log = logging.getLogger(__name__)

# Documents, or pieces of them, that are encoded, written and recorded at a time: so many, or so many characters.
_CHUNK, CHUNK_CHARACTERS = 4096, 2**21
_MAX_TRAINING_DOCUMENTS = 2_000_000  # that a tokenizer is trained on


def cache_dir(folder: str | None) -> Path:
    """Return the folder of packed text and trained tokenizers: ``folder``, $D2V_CACHE or ~/.cache/d2v; made if need be.

    Raises:
        ValueError: it cannot be made or written to.
    """
    variable = os.environ.get("D2V_CACHE")
    given = "D2V_CACHE" if variable and not folder else "cache"
    chosen = folder or variable or "~/.cache/d2v"
    fix = "give a folder that can be written to by cache=DIR or D2V_CACHE"
    try:
        path = Path(chosen).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{given}={folder or variable}: {chosen} needs a home folder, which this user lacks; {fix}"
        ) from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(f"{given}={path}: {error.strerror}; {fix}") from error
    return path


def cached_tokenizer(documents: Documents, vocab_size: int, folder: Path) -> Tokenizer:
    """A tokenizer trained on ``documents``, or the one that was trained on the same before and is not damaged."""
    path = folder / "tokenizers" / f"{_key(documents.fingerprint, str(vocab_size))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # other ranks wait for the first
        if path.exists():
            try:
                return load_tokenizer(path, "the cache")
            except ValueError as error:
                log.warning("%s; training it anew", error)
        log.info("training a tokenizer of %d tokens; it is kept as %s", vocab_size, path)
        tokenizer = train_tokenizer(islice(texts_of(documents), _MAX_TRAINING_DOCUMENTS), vocab_size)
        replace_text(path, tokenizer.to_json())
        return load_tokenizer(path)


class TokenBlocks:
    """Blocks of packed text by number.

    Args:
        folder: written by :func:`pack`.
        block_size: tokens a block, the one that opens it included.
        bos_id: the token that opens it.
        contents: of the documents, for the summary.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, folder: Path, block_size: int, bos_id: int, contents: Contents | None = None) -> None:
        self.folder = folder
        self.block_size = block_size
        self.bos_id = bos_id
        meta = json.loads((folder / "packed.json").read_text())
        self.num_tokens: int = meta["tokens"]
        self.num_documents: int = meta["documents"]
        self.bad: tuple[str, ...] = tuple(meta["bad"])
        self._dtype = meta["dtype"]
        notes = (f"{self.num_documents:,} documents, {self.num_tokens:,} tokens",)
        contents = contents or Contents()
        self.contents = replace(contents, unit="blocks", notes=(*contents.notes, *notes))
        self._tokens: np.ndarray | None = None

    def check_not_empty(self) -> None:
        """Raise ValueError if the text is shorter than one block."""
        if len(self) == 0:
            raise no_block(self.block_size, self.num_tokens)

    def __len__(self) -> int:
        return self.num_tokens // (self.block_size - 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokens": None}  # a worker maps the file anew

    def load(self, index: int) -> np.ndarray:
        """Return (block_size,) int64."""
        length = self.block_size - 1
        return np.concatenate([[self.bos_id], self.tokens(index * length, (index + 1) * length)])

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return (stop - start,) int64: a stretch of the packed text."""
        if self._tokens is None:
            self._tokens = np.memmap(self.folder / "tokens.bin", dtype=self._dtype, mode="r")
        return np.asarray(self._tokens[start:stop], dtype=np.int64)

    def label(self, index: int) -> int | None:
        """Blocks have none."""
        return None

    def name(self, index: int) -> str:
        """The block's number."""
        return f"block[{index}]"

    def mark(self, index: int) -> bytes:
        """The tokens."""
        return self.load(index).tobytes()


def no_block(block_size: int, num_tokens: int) -> ValueError:
    """The error about text that is shorter than one block."""
    fix = f"choose at most {num_tokens + 1}" if num_tokens > 2 else "give more text"
    return ValueError(f"block_size={block_size}: the whole text has {num_tokens} tokens; {fix}")


def pack(documents: Documents, tokenizer: Tokenizer, folder: Path) -> Path:
    """Pack all documents into one file, unless it exists; an interrupted packing is continued.

    A damaged file (full disk, incomplete copy) is packed again.

    Args:
        documents: to pack.
        tokenizer: encodes them.
        folder: of the cache.

    Returns:
        A folder with ``tokens.bin`` and ``packed.json``.

    Raises:
        ValueError: there is no document with a text.
    """
    target = folder / "packed" / _key(documents.fingerprint, tokenizer.fingerprint)
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / "lock"):  # other ranks wait for the first
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        if _recorded(target / "packed.json", dtype) is None:
            (target / "packed.json").unlink(missing_ok=True)
            _pack(documents, tokenizer, target, dtype)
    return target


def _pack(documents: Documents, tokenizer: Tokenizer, target: Path, dtype: np.dtype) -> None:
    tokens_path, bad_path, progress = target / "tokens.bin", target / "bad.jsonl", target / "progress.json"
    done = _recorded(progress, dtype)
    if done is None:
        done = {"documents": 0, "pieces": 0, "tokens": 0, "bad_bytes": 0, "dtype": dtype.name}
        log.info("packing text into %s", target)
    else:
        log.info("packing goes on after %d documents", done["documents"])
    with tokens_path.open("ab") as tokens_file, bad_path.open("ab") as bad_file:
        tokens_file.truncate(done["tokens"] * dtype.itemsize)
        bad_file.truncate(done["bad_bytes"])
        for chunk in chunks(documents.read(done["pieces"]), _CHUNK, CHUNK_CHARACTERS):
            tokens = encode_chunk(chunk, tokenizer, dtype)
            bad = "".join(f"{json.dumps(document.entry)}\n" for document in chunk if document.text is None).encode()
            for file, content in ((tokens_file, tokens.tobytes()), (bad_file, bad)):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            done["documents"] += sum(document.starts for document in chunk)
            done["pieces"] += len(chunk)
            done["tokens"] += len(tokens)
            done["bad_bytes"] += len(bad)
            _write(progress, done)
    entries = [json.loads(line) for line in bad_path.read_text().splitlines()]
    if done["tokens"] > 0:
        packed = {key: done[key] for key in ("documents", "tokens", "dtype")} | {"bad": entries}
        _write(target / "packed.json", packed)
    progress.unlink(missing_ok=True)
    bad_path.unlink()
    if done["tokens"] == 0:
        raise no_text(entries)


def _recorded(path: Path, dtype: np.dtype) -> dict[str, Any] | None:
    """Return the content of ``packed.json`` or ``progress.json``; None if it is missing, damaged or not true."""
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        sizes = {"tokens.bin": record["tokens"] * dtype.itemsize}
        if path.name == "progress.json":
            sizes["bad.jsonl"] = record["bad_bytes"]
        short = [name for name, size in sizes.items() if (path.parent / name).stat().st_size < size]
        numbers = [record[name] for name in ("documents", *(["pieces"] if path.name == "progress.json" else []))]
        known = record["dtype"] == dtype.name and min(numbers) >= 0 and isinstance(record.get("bad", []), list)
        reason = f"{short[0]} is shorter than it says" if short else "" if known else "it is not ours"
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        log.warning("%s is damaged (%s): packing the text anew", path, reason)
        return None
    return record


def chunks(reader: Iterator[Document], most: int, characters: int) -> Iterator[list[Document]]:
    """Documents in lists of at most so many, or, the last one of a list apart, so many characters."""
    chunk: list[Document] = []
    held = 0
    for document in reader:
        chunk.append(document)
        held += len(document.text or "")
        if len(chunk) == most or held >= characters:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def encode_chunk(documents: list[Document], tokenizer: Tokenizer, dtype: np.dtype) -> np.ndarray:
    """The tokens of documents; one with a text in any of its pieces is closed."""
    ids = iter(tokenizer.encode([document.text for document in documents if document.text]))
    parts = []
    for document in documents:
        if document.text:
            parts.append(next(ids))
        if document.ends and (document.text or not document.starts):
            parts.append(np.array([tokenizer.eos_id]))
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content))


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
