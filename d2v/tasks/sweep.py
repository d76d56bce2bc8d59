"""Results of a sweep: the best learning rate over seeds, and one table of all tasks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from d2v.eval.words import ERROR_RATES
from d2v.runs.results import Results, Row

Report = Callable[[Sequence[float]], float]  # mean or median over seeds
Runs = Mapping[tuple[float, int], Results]  # by learning rate and seed


def choose(task: str, runs: Runs, report: Report, diverged: Mapping[float, str]) -> list[Row]:
    """Return the scores of the best learning rate, one row for each evaluation set with labels.

    Args:
        task: name for the rows.
        runs: results of every learning rate with which no seed diverged, all with the same seeds.
        report: mean or median, over seeds.
        diverged: reason by learning rate, for the others.
    """
    reasons = {f"{lr:g}": reason for lr, reason in diverged.items()}
    if not runs:
        return [Row(task, {}, diverged=reasons)]
    first = next(iter(runs.values()))
    metric = first.rows[0].metric
    assert metric is not None
    seeds = list(dict.fromkeys(seed for _, seed in runs))
    worse_first = -1 if metric in ERROR_RATES else 1

    def values(lr: float, set: str, score: str) -> list[float]:
        return [runs[lr, seed].row(set).scores[score] for seed in seeds]

    lrs = dict.fromkeys(lr for lr, _ in runs)
    best = max(lrs, key=lambda lr: worse_first * report(values(lr, "val", metric)))
    return [
        Row(
            task,
            {score: report(values(best, row.set, score)) for score in row.scores},
            row.set,
            metric,
            {score: statistics.pstdev(values(best, row.set, score)) for score in row.scores},
            lr=best,
            diverged=reasons,
        )
        for row in first.rows
        if row.scores
    ]


def sweep_table(rows: Sequence[Row], num_seeds: int, report: str) -> str:
    """Return Markdown tables in percent: GLUE beside published results; then a row for each task and set.

    Args:
        rows: rows of :func:`choose`, for all tasks.
        num_seeds: number of seeds.
        report: "mean" or "median" over the seeds.
    """
    over = "one seed" if num_seeds == 1 else f"{report} of {num_seeds} seeds"
    glue: dict[str, list[Row]] = {}
    for row in rows:
        if row.name.startswith("glue/"):
            glue.setdefault(row.name.removeprefix("glue/"), []).append(row)
    lines = _glue_table(glue, over) if glue.keys() & _GLUE else []
    column = f"%, {over} ± std" if num_seeds > 1 else f"%, {over}"
    lines += [f"| task | set | score | {column} | learning rate |", "|---|---|---|---:|---:|"]
    for row in rows:
        diverged = "; ".join(f"{lr} diverged" for lr in row.diverged)
        if row.metric is None:
            lines.append(f"| {row.name} | | | diverged | {diverged} |")
            continue
        cell = f"{_percent(row):.1f}" + (f" ± {100 * row.std[row.metric]:.1f}" if num_seeds > 1 else "")
        chosen = f"{row.lr:g}" + (f" ({diverged})" if diverged else "")
        lines.append(f"| {row.name} | {row.set} | {row.metric} | {cell} | {chosen} |")
    averaged = [scores[0] for name, scores in glue.items() if name in _GLUE]
    if len(averaged) > 1 and all(row.scores for row in averaged):
        lines.append(f"| average without WNLI | val | | {statistics.mean(map(_percent, averaged)):.1f} | |")
    return "\n".join(lines) + "\n"


def _percent(row: Row) -> float:
    assert row.metric is not None
    return 100 * row.scores[row.metric]


def _glue_table(glue: Mapping[str, Sequence[Row]], over: str) -> list[str]:
    """Return the paper's table with this sweep as its last row; the first row of a task is that of "val"."""
    cells = [_glue_cell(glue.get(name, ())) for name in _GLUE]
    whole = all(name in glue and glue[name][0].scores for name in _GLUE)
    cells.append(f"{statistics.mean(_percent(glue[name][0]) for name in _GLUE):.1f}" if whole else "–")
    return [*_PUBLISHED.splitlines(), f"| this sweep, {over} | " + " | ".join(cells) + " |", ""]


def _glue_cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    return "/".join(f"{_percent(row):.1f}" if row.scores else "diverged" for row in rows)


_GLUE = ("mnli", "qnli", "rte", "mrpc", "qqp", "stsb", "cola", "sst2")  # the columns; published averages lack WNLI
_PUBLISHED = """\
GLUE, development sets, single tasks, in percent; published: mean of five runs (arXiv:2202.03555). MNLI: matched and
mismatched, of which the average of this sweep takes the first.

| | MNLI | QNLI | RTE | MRPC | QQP | STS-B | CoLA | SST | Avg |
|---|---|---|---|---|---|---|---|---|---|
| BERT base | 84.0/84.4 | 89.0 | 61.0 | 86.3 | 89.1 | 89.5 | 57.3 | 93.0 | 80.7 |
| RoBERTa base, retrained | 84.1/83.9 | 90.4 | 69.3 | 89.0 | 89.3 | 88.9 | 56.8 | 92.3 | 82.5 |
| data2vec | 83.2/83.0 | 90.9 | 67.0 | 90.2 | 89.1 | 87.2 | 62.2 | 91.8 | 82.7 |
| data2vec, spans masked | 82.8/83.4 | 91.1 | 69.9 | 90.0 | 89.0 | 87.7 | 60.3 | 92.4 | 82.9 |"""
