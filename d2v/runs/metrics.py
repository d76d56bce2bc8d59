"""``metrics.csv`` of a run: one row for each logged step, appended at once, kept when the run resumes."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v.runs.files import replace_bytes, replace_text

log = logging.getLogger(__name__)

METRICS, SKIPPED_STEPS = "metrics.csv", "skipped_steps_{}.jsonl"  # the latter for each rank


class MetricsFile:
    """Writer of ``metrics.csv``. Steps repeated after a resume appear again; later rows are the valid ones.

    An incomplete last row, left by a kill, is removed; a file with other damage is kept as ``metrics.csv.damaged``.

    Args:
        path: path of the file; created with its folder when the first row is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row; rewrite the file if the row has new columns.

        Raises:
            OSError: the disk is full or gone; the file is unchanged.
        """
        if not self._columns and self.path.exists():
            self._take_up()
        new = [key for key in row if key not in self._columns]
        if new:
            self._add_columns(new)
        end = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError:
            os.truncate(self.path, end)  # leave no incomplete row
            raise

    def _take_up(self) -> None:
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):  # a kill left an incomplete last line
            content = content[: content.rfind(b"\n") + 1]
            replace_bytes(self.path, content)
        try:
            self._columns = parse_metrics(content)[0]
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            log.warning("%s is damaged (%s): kept as %s; starting a new file", self.path, error, aside.name)
            self.path.replace(aside)

    def _add_columns(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.path.exists():
            rows = parse_metrics(self.path.read_bytes())[1]
        columns = ["step", *sorted({*self._columns, *new} - {"step"})]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        replace_text(self.path, text.getvalue())
        self._columns = columns  # only after writing, because the disk may be full


def parse_metrics(content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """Parse ``metrics.csv`` into columns and rows; [] and [] for an empty file.

    Raises:
        ValueError: the text is not such a table.
    """
    text = content.decode("utf-8")
    if "\0" in text:
        raise ValueError("holds zeros")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    columns = list(reader.fieldnames or [])
    if columns and "step" not in columns:
        raise ValueError("has no column step")
    if any(None in row for row in rows):
        raise ValueError("has rows of more cells than columns")
    return columns, rows


def read_metrics(path: Path) -> dict[str, list[float | None]]:
    """Return the columns of a CSV of numbers; empty cells, and cells missing in an incomplete last line, are None."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns: dict[str, list[float | None]] = {name: [] for name in reader.fieldnames or ()}
        for row in reader:
            for name, values in columns.items():
                try:
                    values.append(float(row[name]) if row[name] else None)
                except ValueError:
                    raise ValueError(f"{path}, line {reader.line_num}: {name}={row[name]!r} is no number") from None
    return columns
