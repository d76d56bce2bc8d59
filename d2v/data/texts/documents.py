"""Documents in text files and in Hugging Face data sets; :mod:`d2v.data.texts.blocks` packs them into blocks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from d2v.data.contents import Contents, in_words
from d2v.data.files import Listing, home_path, list_files, printable, splits_read
from d2v.data.hub import find_column, hf_fingerprint, load_hf
from d2v.data.hub_files import Rows
from d2v.data.plain_text import not_plain_text, open_text
from d2v.data.texts.tables import read_table as read_table

EXTENSIONS = (".txt", ".txt.gz")
PIECE = 2**20  # bytes of a document that are read at a time
_NAMED = 3  # documents that cannot be read, in an error
_NAMED_FILES = 10
_READING = 2  # changes when the same files are read as other documents


class Document(NamedTuple):
    """Document, or piece of a long one, or the reason why it cannot be read.

    Attributes:
        text: None if it cannot be read.
        name: "file:line" or a row's number.
        reason: why not, if ``text`` is None.
        starts: whether it is the document's first piece.
        ends: whether it is the last.
    """

    text: str | None
    name: str
    reason: str = ""
    starts: bool = True
    ends: bool = True

    @property
    def entry(self) -> str:
        """Name of one that cannot be read: "name: reason"."""
        return f"{self.name}: {self.reason}"


_SKIPPED = Document(None, "")


class Documents(Protocol):
    """Documents in a fixed order."""

    @property
    def fingerprint(self) -> str:
        """Changes when the documents do."""

    @property
    def contents(self) -> Contents:
        """Their origin, for the summary."""

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every document, or piece of one, from number ``start`` on, those that cannot be read included."""


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
        message += "; text must be UTF-8, so convert it, for example with iconv -f LATIN1 -t UTF-8"
    return ValueError("\n  ".join([message, *bad[:_NAMED]]))


@dataclass(frozen=True)
class TextFiles:
    """Documents in text files, also gzipped: one a line, or one a file.

    They are in UTF-8 (:mod:`d2v.data.plain_text`). Documents longer than ``PIECE`` bytes are read in pieces, cut before
    a blank where there is one.

    Attributes:
        root: a file, or a folder that is searched recursively; hidden files are ignored.
        document: what a document is, "line" or "file". Empty ones are ignored.
        key: the config key that ``root`` was read from, for messages.

    Raises:
        FileNotFoundError: no such file or folder, or no text file in it.
    """

    root: str
    document: Literal["line", "file"] = "line"
    key: str = "root"

    def __post_init__(self) -> None:
        if not self.files():
            left_out = self.contents.left_out
            there = f"; it holds {in_words(left_out)}, which data=hf_text may read" if left_out else ""
            raise FileNotFoundError(
                f"{self.key}={self.root}: no text file there ({', '.join(EXTENSIONS)}); give a file or a folder of "
                f"them{there}"
            )

    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        root = home_path(self.root, self.key)
        if root.is_file():
            return [root]
        return [root / path for path in self._listing(root).paths]

    def _listing(self, root: Path) -> Listing:
        if not root.exists():
            raise FileNotFoundError(
                f"{self.key}={self.root}: no such file or folder; give a text file or a folder of them"
            )
        try:
            listing = list_files(root, EXTENSIONS)
        except OSError as error:
            raise PermissionError(
                f"{self.key}={self.root}: cannot be read ({error.strerror}); make it readable"
            ) from error
        listing.refuse_unreadable(f"{self.key}={self.root}")
        return listing

    @property
    def contents(self) -> Contents:
        """Contents of the root: its documents, and files with other endings below it."""
        root = home_path(self.root, self.key)
        if not root.is_dir():
            return Contents(printable(self.root), "documents")
        listing = self._listing(root)
        left_out = dict(listing.left_out) | ({"broken links": len(listing.broken)} if listing.broken else {})
        return Contents(printable(self.root), "documents", left_out, splits_read(listing))

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of the files."""
        return repr(([_stamp(path) for path in self.files()], self.document, _READING))

    def check(self) -> None:
        """Raise ValueError, naming them and the fix, if there are files that are no plain text."""
        files = self.files()
        reasons = ((path, not_plain_text(path, self.key)) for path in files)
        refused = [(path, reason) for path, reason in reasons if reason is not None]
        if refused and len(files) == 1:
            raise ValueError(f"{self.key}={self.root}: {refused[0][1]}")
        if refused:
            named = "\n  ".join(f"{printable(path)}: {reason}" for path, reason in refused[:_NAMED_FILES])
            raise ValueError(
                f"{self.key}={self.root}: {len(refused)} of {len(files)} files are no plain text; move them away, or "
                f"do as said for each:\n  {named}"
            )

    def read(self, start: int = 0) -> Iterator[Document]:
        """Every document, or piece of one, from number ``start`` on; one that is no UTF-8 has a reason and no text.

        Raises:
            ValueError: a file is no plain text.
        """
        self.check()
        number = 0
        for path in self.files():
            for document in self._documents(path, start - number):
                if number >= start:
                    yield document
                number += 1

    def _documents(self, path: Path, skip: int) -> Iterator[Document]:
        """The documents of a file, the first ``skip`` undecoded; at the end, if it is damaged, the reason."""
        line, place, file = 1, 0, printable(path)
        try:
            with open_text(path) as stream:
                for count, (content, starts, ends) in enumerate(pieces(stream, self.document)):
                    name = f"{file}:{line}" if self.document == "line" else file
                    yield _SKIPPED if count < skip else decode(content, name, starts, ends, place)
                    line, place = line + ends, 0 if ends else place + len(content)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            name = f"{file}:{line}" if self.document == "line" else file
            yield Document(None, name, f"cannot be read on ({error})", starts=place == 0)


def _stamp(path: Path) -> tuple[str, int, int]:
    """Name, size and time of a file; zeros where there is none, as at the end of a broken link."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns


def pieces(stream: IO[bytes], document: Literal["line", "file"]) -> Iterator[tuple[bytes, bool, bool]]:
    """The documents of a stream, long ones in pieces: bytes, and whether a document starts and ends with them."""
    read = stream.readline if document == "line" else stream.read
    rest, starts = b"", True
    while True:
        block = read(PIECE)
        content = rest + block
        ends = len(block) < PIECE or (document == "line" and block.endswith(b"\n"))
        cut = len(content) if ends else _cut(content)
        if content or not starts or document == "file":
            yield content[:cut], starts, ends
        if ends and (document == "file" or not block):
            return
        rest, starts = content[cut:], ends


def _cut(content: bytes) -> int:
    """Return the place to part bytes in UTF-8: before the last blanks of their second half, else between characters."""
    blank = len(content.rstrip())
    if blank == len(content):
        blank = len(content[: max(0, content.rfind(b" "), content.rfind(b"\n"))].rstrip())
    if blank > len(content) // 2:
        return blank
    lead = next((i for i in range(1, min(5, len(content))) if content[-i] & 0xC0 != 0x80), 0)
    return len(content) - lead


def decode(content: bytes, name: str, starts: bool = True, ends: bool = True, place: int = 0) -> Document:
    """A document, or a piece of one, from bytes.

    Args:
        content: in UTF-8.
        name: of the document.
        starts: whether it is the first piece.
        ends: whether it is the last.
        place: of the piece in its document, bytes.
    """
    try:
        text = content.decode("utf-8-sig" if starts else "utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {place + error.start})"
        return Document(None, name, reason, starts, ends)
    if "\0" in text:
        return Document(None, name, f"a NUL character (at byte {place + content.index(0)}): not text", starts, ends)
    text = text.lstrip() if starts else text
    return Document(text.rstrip() if ends else text, name, "", starts, ends)


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
        column = find_column(self.path, data, "column", self.text_column, ("string", "large_string"))
        return data.select_columns([column]), column

    @property
    def contents(self) -> Contents:
        """The data set and its split."""
        return Contents(f"{self.path}/{self.split}", "documents")

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
                yield _document(text, f"{self.path}/{self.split}[{number}]")
                number += 1

    def share(self, reader: int, num_readers: int) -> DocumentShare:
        """The rows of one of ``num_readers``, of a data set that is streamed."""
        data, column = self._rows()
        name = f"{self.path}/{self.split}, share {reader + 1} of {num_readers}"
        return DocumentShare(Rows(data, column).share(reader, num_readers), name)


class DocumentShare:
    """One reader's documents, by their number in its share.

    Args:
        rows: the texts.
        name: of the share, for messages.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self._rows = rows
        self._name = name
        self._number = 0

    def __iter__(self) -> Iterator[Document]:
        for text in self._rows:
            self._number += 1
            yield _document(text, f"{self._name}[{self._number - 1}]")

    def state_dict(self) -> dict[str, Any]:
        """Position after the last document, as plain containers."""
        return {"rows": self._rows.state_dict(), "number": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after that document."""
        self._rows.load_state_dict(state["rows"])
        self._number = state["number"]


def _document(text: str | None, name: str) -> Document:
    """A row as a document; one without a text has a reason instead."""
    return Document(None, name, "no text in this row") if text is None else Document(text.strip(), name)
