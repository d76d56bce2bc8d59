"""Whole documents of packed text by number, to extract features of: one row a document."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from d2v.data.texts.blocks import TokenBlocks
from d2v.data.texts.documents import Documents

_CHUNK = 2**22  # tokens that are searched at a time


class PackedDocuments:
    """Documents as they were packed, without their tokens being made again.

    Args:
        blocks: the packed text.
        documents: what was packed, for the names.
        eos_id: the token that closes a document.
        max_tokens: of a document, the tokens that open and close it included; longer ones are cut.

    Attributes:
        lengths: (len,) int64, tokens of every document, without those that open and close it.
        num_cut: documents longer than ``max_tokens``.

    Raises:
        ValueError: ``documents`` are not those that were packed.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, blocks: TokenBlocks, documents: Documents, eos_id: int, max_tokens: int) -> None:
        self._blocks = blocks
        self._room = max_tokens - 2
        ends = list(_ends(blocks, eos_id))
        self._ends = np.concatenate(ends) if ends else np.empty(0, np.int64)
        self._starts = np.concatenate([[0], self._ends + 1])[:-1]
        self.lengths = self._ends - self._starts
        self.num_cut = int((self.lengths > self._room).sum())
        # One array instead of a list of str: workers would copy a list's pages, by touching reference counts.
        self._names = np.array([d.name.encode() for d in documents.read() if d.ends and (d.text or not d.starts)])
        if len(self._names) != len(self):
            raise ValueError(
                f"{blocks.folder}: holds {len(self)} documents, but there are {len(self._names)} with a text; "
                "remove the folder, and the text is packed anew"
            )

    def __len__(self) -> int:
        return len(self._ends)

    def load(self, index: int) -> np.ndarray:
        """Return (T,) int64, cut to ``max_tokens`` less the two that open and close it."""
        start = int(self._starts[index])
        return self._blocks.tokens(start, start + min(int(self.lengths[index]), self._room))

    def label(self, index: int) -> int | None:
        """Documents have none."""
        return None

    def name(self, index: int) -> str:
        """File and line, or a row's number."""
        return self._names[index].decode()


def _ends(blocks: TokenBlocks, eos_id: int) -> Iterator[np.ndarray]:
    """Yield the positions of tokens that close documents, in parts."""
    for start in range(0, blocks.num_tokens, _CHUNK):
        part = blocks.tokens(start, min(start + _CHUNK, blocks.num_tokens))
        yield start + np.flatnonzero(part == eos_id)
