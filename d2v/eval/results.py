"""Tables of results in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_TITLES = {"knn": "kNN", "letter_error": "letter error"}


def scores_table(rows: Iterable[tuple[str, Mapping[str, float]]], first: str) -> str:
    """Return a GitHub Markdown table in percent, with a row for each name and a column for each score of any row.

    Args:
        rows: names and their scores, fractions.
        first: title of the column of names.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(score for _, scores in rows for score in scores))
    cells = [[first, *(f"{_TITLES.get(column, column)} (%)" for column in columns)]]
    for name, scores in rows:
        values = [f"{100 * scores[column]:.1f}" if column in scores else "–" for column in columns]
        cells.append([name.replace("|", "\\|").replace("\n", " "), *values])
    width, *widths = (max(len(line[column]) for line in cells) for column in range(len(columns) + 1))
    lines = [
        " | ".join([name.ljust(width), *(cell.rjust(w) for cell, w in zip(values, widths, strict=True))])
        for name, *values in cells
    ]
    rule = "|" + "|".join(["-" * (width + 2), *("-" * (w + 1) + ":" for w in widths)]) + "|"
    return "\n".join([f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]) + "\n"
