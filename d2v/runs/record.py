"""``run.json``: record of every start of a run, and the order in which the runs of a folder began."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from d2v.runs.checkpoints import FOLDER, list_checkpoints
from d2v.runs.files import read_json_or_none, replace_json

log = logging.getLogger(__name__)

RECORD, CONFIG = "run.json", "config.yaml"  # record of starts, and the resolved configuration


def write_run_record(path: Path, record: dict[str, Any]) -> None:
    """Write or, after a resume, extend ``run.json``: a list with one entry for each start.

    The ``number`` of the first entry is one more than those of all runs beside it: clocks may be set back, numbers only
    grow. A damaged file is kept as ``run.json.damaged``.
    """
    entries = read_run_record(path)
    if path.exists() and not entries:
        path.replace(path.with_name(f"{path.name}.damaged"))
    path.parent.mkdir(parents=True, exist_ok=True)
    number = _number(entries) or 1 + max((run_number(other) for other in _beside(path.parent)), default=0)
    replace_json(path, [*entries, {"number": number, **record}])


def read_run_record(path: Path) -> list[dict[str, Any]]:
    """Return the entries of ``run.json``; [] if it is missing, or, with a warning, damaged."""
    entries = read_json_or_none(path)
    if entries is None:
        return []
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        return entries
    log.warning("%s is not the record of a run: ignored", path)
    return []


def run_number(folder: Path) -> int:
    """Return the number of a run in the order in which runs beside it began; 0 without a record."""
    return _number(read_run_record(folder / RECORD))


def _number(entries: list[dict[str, Any]]) -> int:
    number = entries[0].get("number") if entries else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 0


def _beside(folder: Path) -> Iterable[Path]:
    return (path.parent for path in folder.parent.glob(f"*/{RECORD}") if path.parent != folder)


def runs_begun_last_first(parent: Path) -> list[Path]:
    """Return the run folders in ``parent`` that hold a checkpoint, latest start first.

    They are sorted by number; runs with the same number, or none, by the folder's name, which begins with the time.
    """
    folders = [path.parent for path in parent.glob(f"*/{FOLDER}") if list_checkpoints(path)]
    return sorted(folders, key=lambda folder: (run_number(folder), folder.name), reverse=True)
