"""Streams of blocks of tokens, packed while documents are read, without storing the text again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from d2v.data.texts.blocks import CHUNK_CHARACTERS, chunks, encode_chunk, no_block
from d2v.data.texts.documents import Document, Documents, DocumentShare, no_text
from d2v.data.texts.tokenizer import Tokenizer

_DOCUMENTS = 256  # encoded at a time


class Block(NamedTuple):
    """A record of a stream.

    Attributes:
        tokens: (block_size,) int64.
        skipped: documents since the block before that could not be read, as "name: reason".
        num_read: documents since the block before, these included.
    """

    tokens: np.ndarray
    skipped: tuple[str, ...] = ()
    num_read: int = 0


class _Packed(NamedTuple):
    """Blocks of a chunk of documents, the tokens that fill no block yet, and bad documents without a block yet."""

    blocks: list[Block]
    rest: np.ndarray
    bad: list[str]


@runtime_checkable
class SharedDocuments(Documents, Protocol):
    """Documents that can be divided among readers."""

    def share(self, reader: int, num_readers: int) -> DocumentShare:
        """The documents of one of ``num_readers``."""


class BlockStream:
    """Blocks in the order of their documents.

    Args:
        documents: to pack; those that cannot be read are reported with the next block.
        tokenizer: encodes them.
        block_size: tokens a block.
        sharded: whether every reader packs a share of the documents (:mod:`d2v.data.shards`).

    Raises:
        ValueError: when it is read to its end, if it is shorter than one block or there is no text at all.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, block_size: int, sharded: bool = False) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.sharded = sharded

    def __iter__(self) -> Iterator[Block]:
        nothing = np.empty(0, dtype=np.int64)
        num_blocks, last = 0, _Packed([], nothing, [])
        for packed in _packed(self.documents.read(), self.tokenizer, self.block_size, nothing):
            yield from packed.blocks
            num_blocks, last = num_blocks + len(packed.blocks), packed
        if num_blocks == 0 and len(last.rest) == 0:
            raise no_text(last.bad)
        if num_blocks == 0:
            raise no_block(self.block_size, len(last.rest))

    def share(self, reader: int, num_readers: int) -> BlockShare:
        """The blocks of one reader's documents. Raises ValueError if the documents cannot be shared out."""
        if not isinstance(self.documents, SharedDocuments):
            raise ValueError("streaming=sharded: is for data=hf_text; give streaming=true")
        return BlockShare(self.documents.share(reader, num_readers), self.tokenizer, self.block_size)

    def decode(self, record: Block) -> np.ndarray:
        """The block itself."""
        return record.tokens

    def name(self, index: int) -> str:
        """The block's number."""
        return f"block[{index}]"


class BlockShare:
    """Blocks of one reader's documents.

    Its position is that of the documents before the chunk that is being packed, the tokens left over from those, and
    the number of blocks of the chunk that are used up.

    Args:
        documents: to pack.
        tokenizer: encodes them.
        block_size: tokens a block.
    """

    def __init__(self, documents: DocumentShare, tokenizer: Tokenizer, block_size: int) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.block_size = block_size
        self._state: dict[str, Any] = {"documents": documents.state_dict(), "rest": [], "blocks": 0}

    def __iter__(self) -> Iterator[Block]:
        start, used = self._state["documents"], self._state["blocks"]
        rest = np.array(self._state["rest"], dtype=np.int64)
        for packed in _packed(iter(self.documents), self.tokenizer, self.block_size, rest):
            for i in range(used, len(packed.blocks)):
                self._state = {"documents": start, "rest": rest.tolist(), "blocks": i + 1}
                yield packed.blocks[i]
            start, rest, used = self.documents.state_dict(), packed.rest, 0
            self._state = {"documents": start, "rest": rest.tolist(), "blocks": 0}

    def state_dict(self) -> dict[str, Any]:
        """Position after the last block, as plain containers."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after that block."""
        self._state = state
        self.documents.load_state_dict(state["documents"])


def _packed(
    documents: Iterator[Document], tokenizer: Tokenizer, block_size: int, rest: np.ndarray
) -> Iterator[_Packed]:
    """Pack documents, a chunk of them at a time, after the tokens left over from those before."""
    length = block_size - 1
    bad: list[str] = []
    num_read = 0
    for chunk in chunks(documents, _DOCUMENTS, CHUNK_CHARACTERS):
        bad += [document.entry for document in chunk if document.text is None]
        num_read += sum(document.starts for document in chunk)
        tokens = np.concatenate([rest, encode_chunk(chunk, tokenizer, np.dtype(np.int64))])
        blocks = []
        for start in range(0, len(tokens) - length + 1, length):
            block = np.concatenate([[tokenizer.bos_id], tokens[start : start + length]])
            blocks.append(Block(block, tuple(bad), num_read))
            bad, num_read = [], 0
        rest = tokens[len(tokens) - len(tokens) % length :]
        yield _Packed(blocks, rest, bad)
