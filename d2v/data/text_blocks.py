"""Documents packed into one file of tokens, once, and read from there through memory mapping, block by block.

A document's tokens are followed by the one that closes documents; a block is the token that opens blocks and the next
``block_size`` - 1 of the file, whatever documents they belong to, as in the released text models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from d2v.data.text_sources import Document, Documents
from d2v.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

log = logging.getLogger(__name__)

_CHUNK = 4096  # documents that are encoded, written and recorded at a time
_MAX_TRAINING_DOCUMENTS = 2_000_000  # that a tokenizer is trained on


def cache_dir(folder: str | None) -> Path:
    """Where packed text and trained tokenizers are kept: ``folder``, $D2V_CACHE or ~/.cache/d2v."""
    return Path(folder or os.environ.get("D2V_CACHE") or "~/.cache/d2v").expanduser()


def cached_tokenizer(documents: Documents, vocab_size: int, folder: Path) -> Tokenizer:
    """A tokenizer trained on ``documents``, or the one that was trained on the same before."""
    path = folder / "tokenizers" / f"{_key(documents.fingerprint, str(vocab_size))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # other ranks wait for the first
        if not path.exists():
            log.info("training a tokenizer of %d tokens; it is kept as %s", vocab_size, path)
            texts = (document.text for document in documents.read() if document.text)
            scratch = path.with_suffix(".tmp")
            tokenizer = train_tokenizer(islice(texts, _MAX_TRAINING_DOCUMENTS), vocab_size)
            scratch.write_text(tokenizer.to_json(), encoding="utf-8")
            scratch.replace(path)
        return load_tokenizer(path)


class TokenBlocks:
    """Blocks of packed text by number.

    Args:
        folder: written by :func:`pack`.
        block_size: tokens a block, the one that opens it included.
        bos_id: the token that opens it.

    Raises:
        ValueError: the text is shorter than one block.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, folder: Path, block_size: int, bos_id: int) -> None:
        self.folder = folder
        self.block_size = block_size
        self.bos_id = bos_id
        meta = json.loads((folder / "packed.json").read_text())
        self.num_tokens: int = meta["tokens"]
        self.num_documents: int = meta["documents"]
        self.bad: tuple[str, ...] = tuple(meta["bad"])
        self._dtype = meta["dtype"]
        self._tokens: np.ndarray | None = None
        if len(self) == 0:
            raise _no_block(block_size, self.num_tokens)

    def __len__(self) -> int:
        return self.num_tokens // (self.block_size - 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokens": None}  # a worker maps the file anew

    def load(self, index: int) -> np.ndarray:
        """(block_size,) int64."""
        if self._tokens is None:
            self._tokens = np.memmap(self.folder / "tokens.bin", dtype=self._dtype, mode="r")
        length = self.block_size - 1
        block = np.empty(self.block_size, dtype=np.int64)
        block[0], block[1:] = self.bos_id, self._tokens[index * length : (index + 1) * length]
        return block

    def label(self, index: int) -> int | None:
        """Blocks have none."""
        return None

    def name(self, index: int) -> str:
        """The block's number."""
        return f"block[{index}]"


def _no_block(block_size: int, num_tokens: int) -> ValueError:
    fix = f"choose at most {num_tokens + 1}" if num_tokens > 2 else "give more text"
    return ValueError(f"data.block_size={block_size}: the whole text has {num_tokens} tokens; {fix}")


def pack(documents: Documents, tokenizer: Tokenizer, folder: Path) -> Path:
    """Tokens of all documents in one file, unless they are there already; an interrupted packing goes on.

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
        if not (target / "packed.json").exists():
            _pack(documents, tokenizer, target)
    return target


def _pack(documents: Documents, tokenizer: Tokenizer, target: Path) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    done: dict[str, Any] = {"documents": 0, "tokens": 0, "bad": [], "dtype": dtype.name}
    progress = target / "progress.json"
    if progress.exists():
        done = json.loads(progress.read_text())
        written = target / "tokens.bin"
        if not written.exists() or written.stat().st_size < done["tokens"] * dtype.itemsize:
            done = {"documents": 0, "tokens": 0, "bad": [], "dtype": dtype.name}  # not what was recorded: start anew
        log.info("packing goes on after %d documents", done["documents"])
    else:
        log.info("packing text into %s", target)
    with (target / "tokens.bin").open("ab") as file:
        file.truncate(done["tokens"] * dtype.itemsize)
        reader = documents.read(done["documents"])
        while chunk := list(islice(reader, _CHUNK)):
            tokens = _encode(chunk, tokenizer, dtype)
            file.write(tokens.tobytes())
            file.flush()
            os.fsync(file.fileno())
            done["documents"] += len(chunk)
            done["tokens"] += len(tokens)
            done["bad"] += [f"{document.name}: {document.reason}" for document in chunk if document.text is None]
            _write(progress, done)
    if done["tokens"] == 0:
        progress.unlink(missing_ok=True)
        raise ValueError("there is no text in these documents: every one is empty or cannot be read")
    _write(target / "packed.json", done)
    progress.unlink()


def _encode(documents: list[Document], tokenizer: Tokenizer, dtype: np.dtype) -> np.ndarray:
    texts = [document.text for document in documents if document.text]
    closed = [np.append(ids, tokenizer.eos_id) for ids in tokenizer.encode(texts)]
    return np.concatenate(closed).astype(dtype) if closed else np.empty(0, dtype)


def _write(path: Path, content: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content))
    scratch.replace(path)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


class Block(NamedTuple):
    """A record of a stream.

    Attributes:
        tokens: (block_size,) int64.
        skipped: documents since the block before that could not be read, as "name: reason".
    """

    tokens: np.ndarray
    skipped: tuple[str, ...] = ()


class BlockStream:
    """Blocks packed while they are read, for text that is not to be stored a second time.

    Args:
        documents: to pack; those that cannot be read are reported with the next block.
        tokenizer: encodes them.
        block_size: tokens a block.

    Raises:
        ValueError: when it is read to its end, if it is shorter than one block.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, block_size: int) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.block_size = block_size

    def __iter__(self) -> Iterator[Block]:
        length = self.block_size - 1
        rest = np.empty(0, dtype=np.int64)
        bad: list[str] = []
        num_blocks = 0
        reader = self.documents.read()
        while chunk := list(islice(reader, 256)):
            bad += [f"{document.name}: {document.reason}" for document in chunk if document.text is None]
            rest = np.concatenate([rest, _encode(chunk, self.tokenizer, np.dtype(np.int64))])
            for start in range(0, len(rest) - length + 1, length):
                yield Block(np.concatenate([[self.tokenizer.bos_id], rest[start : start + length]]), tuple(bad))
                bad = []
                num_blocks += 1
            rest = rest[len(rest) - len(rest) % length :]
        if num_blocks == 0:
            raise _no_block(self.block_size, len(rest))

    def decode(self, record: Block) -> np.ndarray:
        """The block itself."""
        return record.tokens

    def name(self, index: int) -> str:
        """The block's number."""
        return f"block[{index}]"
