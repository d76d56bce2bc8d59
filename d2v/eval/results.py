"""Results of probes: rows, tables, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2v.runs.files import replace_json


@dataclass(frozen=True)
class ProbeRow:
    """One line of a results table; rates and their standard deviations over seeds are fractions, usually 0 to 1.

    Attributes:
        name: what was probed, for example "data2vec 2.0, 50k steps".
        linear: accuracy of the linear probe, or None if it was not run.
        knn: accuracy of the kNN probe, or None if it was not run.
        linear_std: its standard deviation over seeds, or None for a single run.
        knn_std: its standard deviation over seeds, or None for a single run.
        letter_error: of the CTC probe, lower is better, or None if it was not run.
        letter_error_std: its standard deviation over seeds, or None for a single run.
    """

    name: str
    linear: float | None = None
    knn: float | None = None
    linear_std: float | None = None
    knn_std: float | None = None
    letter_error: float | None = None
    letter_error_std: float | None = None


_COLUMNS = (("linear (%)", "linear"), ("kNN (%)", "knn"), ("letter error (%)", "letter_error"))


def probe_table(rows: Iterable[ProbeRow]) -> str:
    """A GitHub Markdown table in percent, with "± std" where a standard deviation is known.

    It has a column for every probe that any row has a result of.
    """
    rows = list(rows)
    columns = [(title, name) for title, name in _COLUMNS if any(getattr(row, name) is not None for row in rows)]
    cells = [["features", *(title for title, _ in columns)]]
    for row in rows:
        name = row.name.replace("|", "\\|").replace("\n", " ")
        cells.append([name, *(_percent(getattr(row, n), getattr(row, f"{n}_std")) for _, n in columns)])
    name_width, *widths = (max(len(line[column]) for line in cells) for column in range(len(columns) + 1))
    lines = [
        "| "
        + " | ".join([line[0].ljust(name_width), *(c.rjust(w) for c, w in zip(line[1:], widths, strict=True))])
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join(["-" * (name_width + 2), *("-" * (w + 1) + ":" for w in widths)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def save_results(path: Path | str, rows: Iterable[ProbeRow], **context: Any) -> Path:
    """Write probe results, and what they were computed from, as JSON.

    Args:
        path: the file, usually ``results.json``; missing folders are made, an existing file is replaced.
        rows: the results; accuracies stay fractions.
        context: whatever identifies the run (checkpoint, data, seeds), JSON values only.

    Returns:
        The path.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        TypeError: a value in ``context`` is no JSON value.
    """
    path = Path(path)
    results: Mapping[str, Any] = {**context, "probes": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, results)
    return path


def _percent(accuracy: float | None, std: float | None) -> str:
    if accuracy is None:
        return "–"
    return f"{100 * accuracy:.1f}" if std is None else f"{100 * accuracy:.1f} ± {100 * std:.1f}"
