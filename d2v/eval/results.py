"""Tables of results in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from d2v.runs.results import Row

_TITLES = {"knn": "kNN", "letter_error": "letter error"}


def probes_table(rows: Iterable[Row]) -> str:
    """Return the table of probes: scores, how the linear probe reached them, and below it what makes them doubtful."""
    rows = list(rows)
    table = scores_table([(row.name, {**row.scores, **_words(row)}) for row in rows], "features")
    notes = [f"{row.name}: {note}" for row in rows for note in row.notes]
    return table + "".join(f"\n{note}\n" for note in notes)


def _words(row: Row) -> dict[str, str]:
    """Return the chosen C, of several splits the range, and whether the linear probe converged; {} without it."""
    if row.converged is None:
        return {}
    low, high = min(row.c), max(row.c)
    return {"C": f"{low:g}" if low == high else f"{low:g} to {high:g}", "converged": "yes" if row.converged else "no"}


def scores_table(rows: Iterable[tuple[str, Mapping[str, float | str]]], first: str) -> str:
    """Return a GitHub Markdown table in percent, with a row for each name and a column for each score of any row.

    Args:
        rows: names and their scores, fractions; or words, which stand as they are.
        first: title of the column of names.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(score for _, scores in rows for score in scores))
    words = {column for _, scores in rows for column, value in scores.items() if isinstance(value, str)}
    cells = [[first, *(column if column in words else f"{_TITLES.get(column, column)} (%)" for column in columns)]]
    for name, scores in rows:
        values = [_cell(scores[column]) if column in scores else "–" for column in columns]
        cells.append([name.replace("|", "\\|").replace("\n", " "), *values])
    width, *widths = (max(len(line[column]) for line in cells) for column in range(len(columns) + 1))
    lines = [
        " | ".join([name.ljust(width), *(cell.rjust(w) for cell, w in zip(values, widths, strict=True))])
        for name, *values in cells
    ]
    rule = "|" + "|".join(["-" * (width + 2), *("-" * (w + 1) + ":" for w in widths)]) + "|"
    return "\n".join([f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]) + "\n"


def scores_in_words(scores: Mapping[str, float]) -> str:
    """Return scores in percent on one line: "linear 83.0 %, kNN 82.4 %"."""
    return ", ".join(f"{_TITLES.get(name, name)} {_cell(value)} %" for name, value in scores.items())


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{100 * value:.1f}"
