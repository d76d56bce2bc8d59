"""Texts that ship with the package."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

from d2v.data.contents import Contents
from d2v.data.texts.documents import Document
from d2v.data.texts.tables import LabelledTexts
from d2v.data.texts.tables import read_table as read_table

NUM_VAL, NUM_PROBE_TRAIN = 2500, 10000


@dataclass(frozen=True)
class SampleTexts:
    """WordNet's glosses, which ship with the package: 117,659 short definitions, each of one of 45 lexical classes.

    As documents to pretrain on, all but the 2,500 that are held out.
    """

    fingerprint: str = "wordnet-glosses-1"
    contents: Contents = field(default=Contents("the package's samples", "documents"))

    def rows(self) -> list[tuple[str, str]]:
        """Return (class, gloss) of all: first the 2,500 held-out ones."""
        with (resources.files("d2v.data.samples") / "wordnet_glosses.tsv.gz").open("rb") as file:
            lines = gzip.decompress(file.read()).decode().splitlines()
        return [(name, gloss) for name, _, gloss in (line.partition("\t") for line in lines)]

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every gloss that is not held out."""
        for number, (_, gloss) in enumerate(self.rows()[NUM_VAL + start :], NUM_VAL + start):
            yield Document(gloss, f"wordnet_glosses[{number}]")

    def labelled(self, split: Literal["train", "val"]) -> LabelledTexts:
        """First clauses with their classes: 10,000 to train a probe on, or the 2,500 held-out ones."""
        rows = self.rows()
        names = tuple(sorted({name for name, _ in rows}))
        chosen = rows[:NUM_VAL] if split == "val" else rows[NUM_VAL : NUM_VAL + NUM_PROBE_TRAIN]
        texts = [gloss.partition(";")[0].strip() for _, gloss in chosen]
        return LabelledTexts(texts, [names.index(name) for name, _ in chosen], names, f"wordnet_glosses/{split}")
