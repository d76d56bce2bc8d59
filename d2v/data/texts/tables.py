"""Tables of labelled texts, for probes: .tsv and .csv with a header."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2v.data.bad_samples import BadSample
from d2v.data.contents import Contents
from d2v.data.files import home_path
from d2v.data.plain_text import utf8_of

log = logging.getLogger(__name__)

# A row of tab-separated cells as csv writes it: a cell with a tab, a quote or a line's end in it stands in quotes, and
# quotes within are doubled.
_CELL = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t\r\n]*)'
_QUOTED_ROW = re.compile(rf"{_CELL}(?:\t{_CELL})*(?:\r?\n|\Z)")


class LabelledTexts:
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
        self.contents = Contents(name, "texts")
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
) -> LabelledTexts:
    """Labelled texts of a .tsv or .csv file with a header.

    Args:
        path: the file.
        key: the argument that ``path`` was read from, for messages.
        text_column: of the texts; "sentence" or "text" if None.
        label_column: of the labels, any strings; "label" if None.
        limit: at most so many rows, evenly spaced; None for all.
        class_names: those of the training set, for a set with the same meaning of labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, a column is missing or there twice, a row has a cell too many or too few, no label or
            one that ``class_names`` lacks, naming file and line.
    """
    file_path = home_path(path, key)
    if not file_path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file; give a .tsv or .csv file with a header")
    content = _content(file_path, f"{key}={path}")
    rows = _rows(content, "," if file_path.suffix.lower() == ".csv" else "\t", path)
    header = [cell.strip() for cell in next(rows, ([], 1))[0]]
    if not header:
        raise ValueError(f"{key}={path}: an empty table; give a .tsv or .csv file with a header")
    texts_at = _column(path, header, "text_column", text_column, ("sentence", "text"))
    labels_at = _column(path, header, "label_column", label_column, ("label",))
    examples: list[tuple[str, str]] = []
    for row, line in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}:{line}: {len(row)} columns, but the header has {len(header)}; put cells that hold the "
                "separator in quotes, or remove the row"
            )
        text, label = row[texts_at].strip(), row[labels_at].strip()
        if not label:
            raise ValueError(f"{path}:{line}: no label in column {header[labels_at]!r}; add one, or remove the row")
        if class_names is not None and label not in class_names:
            known = ", ".join(class_names[:10])
            raise ValueError(f"{path}:{line}: label {label!r} is not in the training set ({known})")
        examples.append((text, label))
    if not examples:
        raise ValueError(f"{key}={path}: the table has no rows")
    names = class_names or tuple(sorted({label for _, label in examples}))
    _warn_of_look_alikes(path, names)
    number = {name: i for i, name in enumerate(names)}
    if limit is not None and limit < len(examples):
        examples = [examples[i * len(examples) // limit] for i in range(limit)]
    return LabelledTexts([text for text, _ in examples], [number[label] for _, label in examples], names, str(path))


def _content(path: Path, where: str) -> str:
    try:
        content = utf8_of(path)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line}: a NUL character, which is no text; remove it")
    return text


def _rows(content: str, delimiter: str, path: str) -> Iterator[tuple[list[str], int]]:
    """The rows of a table that are not empty, and the lines that they begin on.

    Tables with tabs often hold bare quotes, as GLUE's do: in them quotes mean something only where every quote of the
    table does.
    """
    csv.field_size_limit(2**31 - 1)
    quoted = delimiter == "," or _quotes_mean_something(content)
    rows = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
        skipinitialspace=delimiter == ",",
    )
    line = 1
    try:
        for row in rows:
            if row:
                yield row, line
            line = rows.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}:{line}: {error}; close the quotes, and write quotes within a quoted cell twice"
        ) from error


def quotes_mean_something(path: Path, size: int = 2**22) -> bool:
    """Return whether quotes at the beginning of a file with tabs are those that csv writes: see :func:`_rows`."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.read(size)
    if len(head) == size:
        head = head[: head.rfind(b"\n") + 1] or head
    return _quotes_mean_something(head.decode("utf-8", "replace"))


def _quotes_mean_something(content: str) -> bool:
    place = 0
    while place < len(content):
        row = _QUOTED_ROW.match(content, place)
        if row is None:
            return False
        place = row.end()
    return True


def _column(path: str, header: list[str], key: str, name: str | None, defaults: tuple[str, ...]) -> int:
    for candidate in (name,) if name is not None else defaults:
        if header.count(candidate) > 1:
            raise ValueError(
                f"{path}:1: the header has {header.count(candidate)} columns {candidate!r}; rename all but one"
            )
        if candidate in header:
            return header.index(candidate)
    value = "null" if name is None else name
    if len(header) == 1:
        raise ValueError(
            f"{key}={value}: {path} has one column alone, {header[0][:100]!r}; separate its cells by "
            f"{'commas' if path.lower().endswith('.csv') else 'tabs'}, or let its name end in .csv or .tsv as they are"
        )
    raise ValueError(f"{key}={value}: {path} has the columns {', '.join(header)}; set {key} to one of them")


def _warn_of_look_alikes(path: str, names: Sequence[str]) -> None:
    """Name classes that differ only in blanks or case: most likely they are meant to be one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            log.warning("%s: the classes %s differ only in blanks or case", path, ", ".join(map(repr, group)))
