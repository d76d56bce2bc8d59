"""Summary of the runs below a folder, from their files; damaged or missing files only leave cells empty."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v.bounds import read_json, read_yaml
from d2v.runs.checkpoints import FOLDER, saved_steps
from d2v.runs.files import replace_text
from d2v.runs.lock import is_locked
from d2v.runs.metrics import METRICS
from d2v.runs.record import CONFIG, RECORD
from d2v.runs.results import RESULTS

ENDED = "ended.json"  # error of a command that failed
DIVERGED = "diverged.txt"  # why a run of a sweep has no results
TRAINING = ("pretrain", "finetune")
_DEPTH = 5  # depth below the listed folder: name/time, of a sweep name/time/run
_INSIDE = {FOLDER, ".hydra", "tensorboard", "wandb", "evaluate"}  # folders inside a run are no runs


@dataclass(frozen=True)
class RunSummary:
    """A run of ``d2v pretrain`` or ``d2v finetune``.

    Attributes:
        folder: folder of the run.
        command: "pretrain" or "finetune".
        name: its experiment or task, and the modalities of its encoder.
        state: running, finished, stopped, failed or diverged.
        step: last step logged or saved.
        max_steps: last step of the whole run.
        loss: last logged loss.
        best: best score, with its name.
        changed: time at which its newest file was written, seconds since the epoch.
    """

    folder: Path
    command: str
    name: str
    state: str
    step: int | None
    max_steps: int | None
    loss: float | None
    best: str | None
    changed: float

    def __str__(self) -> str:
        of = f" of {self.max_steps:,}" if self.max_steps else ""
        at = "" if self.step is None else f", step {self.step:,}{of}"
        return f"{self.folder} ({self.command} {self.name}, {self.state}{at})"


def find_runs(root: str | Path) -> list[Path]:
    """Return the folders of runs below ``root``, sorted by name."""
    return sorted(_runs(Path(root), _DEPTH))


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    try:
        names = {entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name not in _INSIDE}
    except OSError:
        return
    if command_of(folder) in TRAINING:
        yield folder
    if depth:
        for name in names:
            yield from _runs(folder / name, depth - 1)


def command_of(folder: Path) -> str | None:
    """Return the command that created a run's folder; None if the folder is no run."""
    record = _content(folder / RECORD)
    entry = record[-1] if isinstance(record, list) and record else None
    words = entry.get("command") if isinstance(entry, dict) else None
    if isinstance(words, list) and len(words) > 1:
        return str(words[1])
    return next((name for name in TRAINING if (folder / f"{name}.log").is_file()), None)


def newest_run(root: str | Path, commands: Sequence[str] = TRAINING) -> Path | None:
    """Return the run below ``root`` with the checkpoint written last; None if there is no checkpoint."""
    candidates = [
        (_newest_checkpoint(folder), str(folder)) for folder in find_runs(root) if command_of(folder) in commands
    ]
    newest = max(candidates, default=(0.0, ""))
    return Path(newest[1]) if newest[0] else None


def _newest_checkpoint(folder: Path) -> float:
    return max((_changed(path) for path in (folder / FOLDER).glob("*.ckpt")), default=0.0)


def summarise(folder: Path) -> RunSummary:
    """Summarise a run from its files."""
    config = _content(folder / CONFIG)
    config = config if isinstance(config, dict) else {}
    rows = _metrics(folder / METRICS)
    steps = saved_steps(folder / FOLDER) + [int(row["step"]) for row in rows[-1:]]
    step, max_steps = max(steps, default=None), _last_max_steps(folder) or _at(config, "trainer", "max_steps")
    max_steps = max_steps if isinstance(max_steps, int) else None
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    command = command_of(folder) or ""
    files = [folder, folder / METRICS, folder / RECORD, folder / RESULTS, folder / FOLDER]
    return RunSummary(
        folder,
        command,
        _name(config, folder),
        _state(folder, command, step, max_steps),
        step,
        max_steps,
        losses[-1] if losses else None,
        _best(rows),
        max(_changed(path) for path in files),
    )


def _name(config: dict[str, Any], folder: Path) -> str:
    frontends = _at(config, "model", "encoder", "frontends")
    modalities = f" ({', '.join(map(str, frontends))})" if isinstance(frontends, dict) else ""
    return f"{config.get('task_name') or config.get('name') or folder.parent.name}{modalities}"


def _last_max_steps(folder: Path) -> Any:
    """Return ``max_steps`` of the last start, because that of a resumed run may differ from its configuration."""
    record = _content(folder / RECORD)
    last = record[-1] if isinstance(record, list) and record else {}
    return last.get("max_steps") if isinstance(last, dict) else None


def _state(folder: Path, command: str, step: int | None, max_steps: int | None) -> str:
    if is_locked(folder):
        return "running"
    if (folder / DIVERGED).is_file():
        return "diverged"
    whole = step is not None and max_steps is not None and step >= max_steps
    if whole and (command == "pretrain" or (folder / RESULTS).is_file()):
        return "finished"
    ended = _content(folder / ENDED)
    state = ended.get("state") if isinstance(ended, dict) else None
    return state if state in ("failed", "diverged") else "stopped"


def note_end(folder: Path, error: BaseException) -> None:
    """Write to a run's folder how it ended (``error.state``, or "failed") and why."""
    record = {"state": getattr(error, "state", "failed"), "reason": str(error)}
    replace_text(folder / ENDED, json.dumps(record, indent=2) + "\n")


def _best(rows: list[dict[str, float]]) -> str | None:
    """Return the best value of the first logged score: the highest accuracy, or the lowest error rate."""
    names = [key for row in rows for key in row if key.startswith(("val/", "probe/"))]
    if not names:
        return None
    name = names[0]
    values = [row[name] for row in rows if name in row]
    best = min(values) if name.endswith(("wer", "cer", "error", "loss")) else max(values)
    return f"{name.partition('/')[2]} {best:.4g}"


def _metrics(path: Path) -> list[dict[str, float]]:
    """Return the intact rows of ``metrics.csv``, each with its step and its finite numbers."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            text = (line.replace("\0", "") for line in file)
            rows = [row for row in csv.DictReader(text) if None not in row and None not in row.values()]
    except (OSError, csv.Error):
        return []
    numbers = [{key: _number(value) for key, value in row.items()} for row in rows]
    finite = [{key: value for key, value in row.items() if math.isfinite(value)} for row in numbers]
    return [row for row in finite if "step" in row]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _content(path: Path) -> Any:
    """Read a JSON or YAML file; None if it is missing or damaged."""
    try:
        return read_json(path) if path.suffix == ".json" else read_yaml(path)
    except (OSError, ValueError, RecursionError):
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def table_of_runs(runs: list[RunSummary], now: float | None = None) -> str:
    """Return a table with one line for each run, sorted by time of change."""
    now = time.time() if now is None else now
    rows = [("run", "command", "experiment or task", "state", "step", "loss", "best", "age")]
    for run in sorted(runs, key=lambda run: run.changed):
        step = "" if run.step is None else f"{run.step:,}" + (f"/{run.max_steps:,}" if run.max_steps else "")
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        rows.append(
            (str(run.folder), run.command, run.name, run.state, step, loss, run.best or "", _age(now - run.changed))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
