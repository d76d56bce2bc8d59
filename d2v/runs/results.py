"""``results.json``: scores of probes, fine-tuned models and sweeps, in one shape.

One row for each model and evaluation set. Empty fields of a row are left out of the file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from d2v.runs.files import read_json_or_none, replace_json, replace_text, writing

log = logging.getLogger(__name__)

RESULTS, TABLE = "results.json", "results.md"
# Other files, for every evaluation set:
PREDICTIONS, REPORT, CONFUSION = "predictions_{}.tsv", "report_{}.md", "confusion_{}.png"
SUBMISSION = "submission"  # folder of answers for sets with hidden labels


@dataclass(frozen=True)
class Row:
    """Scores of one model on one evaluation set.

    Attributes:
        name: of the model, such as "raw pixels" or "pretrained encoder, 400 steps"; in a sweep, of the task.
        scores: by name, fractions, usually 0 to 1; {} for a set without labels, or if every learning rate diverged.
        set: name of the evaluation set.
        metric: name of the score that chooses the best checkpoint or learning rate; None for probes.
        std: standard deviation over seeds of every score; {} for a single run.
        samples: number of samples scored.
        skipped: samples that could not be read, as "name: reason".
        lr: learning rate that a sweep chose; None if all diverged.
        diverged: reason by learning rate, for those that a sweep left out.
        c: inverse L2 strength that the linear probe chose, for each split; () without that probe.
        converged: whether all fits of the linear probe converged; None without that probe.
        notes: what makes the scores doubtful, such as the chosen C at an end of its grid.
    """

    name: str
    scores: Mapping[str, float]
    set: str = "val"
    metric: str | None = None
    std: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None
    skipped: Sequence[str] = ()
    lr: float | None = None
    diverged: Mapping[str, str] = field(default_factory=dict)
    c: Sequence[float] = ()
    converged: bool | None = None
    notes: Sequence[str] = ()


_OPTIONAL = {f.name for f in fields(Row)} - {"name", "scores", "set"}


@dataclass(frozen=True)
class Results:
    """Content of ``results.json``.

    Attributes:
        rows: at least one.
        about: origin of the rows, JSON values: checkpoint, step, seed.
    """

    rows: Sequence[Row]
    about: Mapping[str, Any] = field(default_factory=dict)

    def row(self, set: str) -> Row:
        """Return the first row of an evaluation set. Raises KeyError without one."""
        for row in self.rows:
            if row.set == set:
                return row
        raise KeyError(set)


def write_results(folder: Path, results: Results, table: str) -> Path:
    """Write ``results.json`` and ``results.md``; older files are replaced.

    Args:
        folder: created if missing.
        results: the scores.
        table: the scores as a Markdown table.

    Returns:
        The path of ``results.json``.

    Raises:
        NotWritten: the disk is full or not writable.
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        TypeError: a value of ``about`` is not a JSON value.
    """
    rows = [{k: v for k, v in asdict(row).items() if v or v is False or k not in _OPTIONAL} for row in results.rows]
    with writing("output_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_json(folder / RESULTS, {**results.about, "rows": rows})
        replace_text(folder / TABLE, table)
    return folder / RESULTS


def read_results(folder: Path) -> Results | None:
    """Read ``results.json``; None if it is missing, or, with a warning, damaged."""
    content = read_json_or_none(folder / RESULTS)
    if content is None:
        return None
    try:
        return Results(tuple(Row(**row) for row in content.pop("rows")), content)
    except (AttributeError, KeyError, TypeError) as error:
        log.warning("%s holds no results (%s): ignored", folder / RESULTS, error)
        return None
