"""Where text comes from: documents in files, in Hugging Face data sets, in the samples that ship; labelled tables.

A document is a ``str``. ``text_blocks`` packs documents into blocks of tokens.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from d2v.data.bad_samples import BadSample
from d2v.data.files import files_below
from d2v.data.hf import find_column, hf_fingerprint, load_hf

EXTENSIONS = (".txt", ".txt.gz")
_NAMED = 3  # documents that cannot be read, in an error


class Document(NamedTuple):
    """A document, or why it cannot be read.

    Attributes:
        text: None if it cannot be read.
        name: "file:line" or a row's number.
        reason: why not, if ``text`` is None.
    """

    text: str | None
    name: str
    reason: str = ""

    @property
    def entry(self) -> str:
        """How one that cannot be read is named: "name: reason"."""
        return f"{self.name}: {self.reason}"


class Documents(Protocol):
    """Documents in a fixed order."""

    @property
    def fingerprint(self) -> str:
        """Changes when the documents do."""

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every document from number ``start`` on, those that cannot be read included."""


def texts_of(documents: Documents) -> Iterator[str]:
    """Every text that can be read and is not empty. Raises ValueError at the end if there is none."""
    bad: list[str] = []
    empty = True
    for document in documents.read():
        if document.text:
            empty = False
            yield document.text
        elif document.text is None and len(bad) < _NAMED:
            bad.append(document.entry)
    if empty:
        raise no_text(bad)


def no_text(bad: Sequence[str]) -> ValueError:
    """The error about documents without any text, and why the first of them cannot be read.

    Args:
        bad: :attr:`Document.entry` of those that cannot be read.
    """
    message = "there is no text in these documents: every one is empty or cannot be read"
    if any("not UTF-8" in entry for entry in bad):
        message += "; text must be UTF-8, so convert it, as by iconv -f LATIN1 -t UTF-8"
    return ValueError("\n  ".join([message, *bad[:_NAMED]]))


@dataclass(frozen=True)
class TextFiles:
    """Documents in UTF-8 text files, also gzipped: one a line, or one a file.

    Attributes:
        root: a file, or a folder that is searched recursively; hidden files are ignored.
        document: what a document is, "line" or "file". Empty ones are passed over.
        key: the config key that ``root`` was read from, for messages.

    Raises:
        FileNotFoundError: no such file or folder, or no text file in it.
        ValueError: an unknown ``document``.
    """

    root: str
    document: Literal["line", "file"] = "line"
    key: str = "data.root"

    def __post_init__(self) -> None:
        if self.document not in ("line", "file"):
            raise ValueError(f"data.document={self.document}: choose line or file")
        if not self.files():
            raise FileNotFoundError(
                f"{self.key}={self.root}: no text file there ({', '.join(EXTENSIONS)}); give a file or a folder of them"
            )

    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        root = Path(self.root).expanduser()
        if root.is_file():
            return [root]
        if not root.exists():
            raise FileNotFoundError(
                f"{self.key}={self.root}: no such file or folder; give a text file or a folder of them"
            )
        return [Path(path) for path in files_below(root, EXTENSIONS)]

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and times of the files."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return repr((stats, self.document))

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every document from number ``start`` on; one that is no UTF-8 has a reason instead of a text."""
        number = 0
        for path in self.files():
            for line, content in enumerate(self._contents(path), 1):
                if number >= start:
                    name = f"{path}:{line}" if self.document == "line" else str(path)
                    yield decode(content, name) if isinstance(content, bytes) else Document(None, name, content)
                number += 1

    def _contents(self, path: Path) -> Iterator[bytes | str]:
        """What documents consist of; at the end, if the file is damaged, the reason."""
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                yield from file if self.document == "line" else [file.read()]
        except (OSError, EOFError, zlib.error) as error:
            yield f"cannot be read on ({error})"


def decode(content: bytes, name: str) -> Document:
    """A document from bytes."""
    try:
        return Document(content.decode("utf-8-sig").strip(), name)
    except UnicodeDecodeError as error:
        return Document(None, name, f"not UTF-8 ({error.reason} at byte {error.start})")


@dataclass(frozen=True)
class HFTexts:
    """Documents in a column of a Hugging Face data set (extra ``d2v[hf]``).

    Attributes:
        path: name on the Hub, a local directory of parquet, arrow, text or JSON files, or what ``save_to_disk`` wrote.
        split: for example "train".
        text_column: the only column of strings if None.
        streaming: read while it is used, instead of downloading first.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: ``datasets`` is not installed, or split or column do not exist or are ambiguous.
    """

    path: str
    split: str = "train"
    text_column: str | None = None
    streaming: bool = False

    def __post_init__(self) -> None:
        self._rows()  # to see that it can be had

    def _rows(self) -> tuple[Any, str]:
        data = load_hf(self.path, self.split, self.streaming)
        column = find_column(self.path, data, "data.column", self.text_column, ("string", "large_string"))
        return data.select_columns([column]), column

    @property
    def fingerprint(self) -> str:
        """The data set's own, or where it is streamed of its files; and the column."""
        data, column = self._rows()
        return f"{hf_fingerprint(data, self.path, self.split)} {column}"

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every row from number ``start`` on; one without a text has a reason instead."""
        data, column = self._rows()
        rows = data.skip(start) if start else data
        number = start
        # Not iter(rows): inside a data worker that would give this worker's share of the files only.
        for batch in rows.iter(batch_size=256):
            for text in batch[column]:
                name = f"{self.path}/{self.split}[{number}]"
                yield Document(None, name, "no text in this row") if text is None else Document(text.strip(), name)
                number += 1


class Labelled:
    """Labelled texts by number, for probes.

    Args:
        texts: as they are.
        labels: their classes, by number.
        class_names: of the numbers.
        name: what they are called in messages.
    """

    class_names: tuple[str, ...] | None

    def __init__(self, texts: Sequence[str], labels: Sequence[int], class_names: tuple[str, ...], name: str) -> None:
        self.texts = list(texts)
        self.labels = list(labels)
        self.class_names = class_names
        self._name = name

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Characters of every text."""
        return [len(text) for text in self.texts]

    def load(self, index: int) -> str:
        """The text. Raises BadSample if it is empty."""
        if not self.texts[index].strip():
            raise BadSample("empty text")
        return self.texts[index]

    def label(self, index: int) -> int | None:
        """The text's class."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """Table and row."""
        return f"{self._name}[{index}]"


def read_table(
    path: str,
    key: str,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Labelled:
    """Labelled texts of a .tsv or .csv file with a header.

    Args:
        path: the file.
        key: the config key that ``path`` was read from, for messages.
        text_column: of the texts; "sentence" or "text" if None.
        label_column: of the labels, any strings; "label" if None.
        limit: at most so many rows, evenly spaced; None for all.
        class_names: those of the training set, for a set whose labels must mean the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, a row has none or a label that ``class_names`` lacks, naming file and line.
    """
    file_path = Path(path).expanduser()
    if not file_path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; give a .tsv or .csv file with a header")
    delimiter = "," if file_path.suffix == ".csv" else "\t"
    try:
        content = file_path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}={path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
    )
    header = next(rows, [])
    texts_at = _column(path, header, "data.text_column", text_column, ("sentence", "text"))
    labels_at = _column(path, header, "data.label_column", label_column, ("label",))
    found: list[tuple[str, str, int]] = []
    for row in rows:
        if not row:
            continue
        if len(row) <= max(texts_at, labels_at):
            raise ValueError(f"{path}:{rows.line_num}: {len(row)} columns, but the header has {len(header)}")
        found.append((row[texts_at].strip(), row[labels_at].strip(), rows.line_num))
    if not found:
        raise ValueError(f"{key}={path}: the table has no rows")
    names = class_names or tuple(sorted({label for _, label, _ in found}))
    number = {name: i for i, name in enumerate(names)}
    for _, label, line in found:
        if label not in number:
            raise ValueError(f"{path}:{line}: label {label!r} is not in the training set ({', '.join(names[:10])})")
    if limit is not None and limit < 1:
        raise ValueError(f"data.probe_limit={limit}: must be at least 1, or null")
    if limit is not None and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    return Labelled([text for text, _, _ in found], [number[label] for _, label, _ in found], names, str(path))


def _column(path: str, header: list[str], key: str, name: str | None, defaults: tuple[str, ...]) -> int:
    for candidate in (name,) if name is not None else defaults:
        if candidate in header:
            return header.index(candidate)
    raise ValueError(f"{key}={name}: {path} has the columns {', '.join(header)}; set {key} to one of them")


NUM_VAL, NUM_PROBE_TRAIN = 2500, 10000


@dataclass(frozen=True)
class SampleTexts:
    """WordNet's glosses, which ship with the package: 117,659 short definitions, each of one of 45 lexical classes.

    As documents to pretrain on, all but the 2,500 that are held out.
    """

    fingerprint: str = "wordnet-glosses-1"

    def rows(self) -> list[tuple[str, str]]:
        """(class, gloss) of all: first the 2,500 held-out ones."""
        with (resources.files("d2v.data.samples") / "wordnet_glosses.tsv.gz").open("rb") as file:
            lines = gzip.decompress(file.read()).decode().splitlines()
        return [(name, gloss) for name, _, gloss in (line.partition("\t") for line in lines)]

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every gloss that is not held out."""
        for number, (_, gloss) in enumerate(self.rows()[NUM_VAL + start :], NUM_VAL + start):
            yield Document(gloss, f"wordnet_glosses[{number}]")

    def labelled(self, split: Literal["train", "val"]) -> Labelled:
        """First clauses with their classes: 10,000 to train a probe on, or the 2,500 held-out ones."""
        rows = self.rows()
        names = tuple(sorted({name for name, _ in rows}))
        chosen = rows[:NUM_VAL] if split == "val" else rows[NUM_VAL : NUM_VAL + NUM_PROBE_TRAIN]
        texts = [gloss.partition(";")[0].strip() for _, gloss in chosen]
        return Labelled(texts, [names.index(name) for name, _ in chosen], names, f"wordnet_glosses/{split}")
