"""Tables of results."""

from __future__ import annotations

import numpy as np

from d2v.eval.results import probes_table, scores_in_words, scores_table
from d2v.runs.results import Row


def test_a_row_a_name_and_a_column_a_score() -> None:
    rows = [("raw | pixels", {"linear": 0.83, "knn": 0.824}), ("data2vec\n2.0", {"linear": np.float64(0.8912)})]
    assert scores_table(rows, "features") == (
        "| features      | linear (%) | kNN (%) |\n"
        "|---------------|-----------:|--------:|\n"
        "| raw \\| pixels |       83.0 |    82.4 |\n"
        "| data2vec 2.0  |       89.1 |       – |\n"
    )


def test_a_score_that_only_later_rows_have_is_a_column_too() -> None:
    assert scores_table([("a", {"top1": 0.5}), ("b", {"letter_error": 1.25})], "set") == (
        "| set | top1 (%) | letter error (%) |\n"
        "|-----|---------:|-----------------:|\n"
        "| a   |     50.0 |                – |\n"
        "| b   |        – |            125.0 |\n"
    )


def test_probes_say_how_they_came_about() -> None:
    rows = [
        Row("raw pixels", {"linear": 0.83, "knn": 0.824}, c=[0.01], converged=True),
        Row("held out", {"linear": 0.5, "knn": 0.25}, c=[0.1, 10.0, 1.0], converged=False, notes=["C=10 is odd"]),
    ]
    assert probes_table(rows) == (
        "| features   | linear (%) | kNN (%) |         C | converged |\n"
        "|------------|-----------:|--------:|----------:|----------:|\n"
        "| raw pixels |       83.0 |    82.4 |      0.01 |       yes |\n"
        "| held out   |       50.0 |    25.0 | 0.1 to 10 |        no |\n"
        "\nheld out: C=10 is odd\n"
    )
    assert "converged" not in probes_table([Row("kNN alone", {"knn": 0.5})])


def test_scores_on_one_line() -> None:
    assert scores_in_words({"linear": 0.8304, "knn": 0.5}) == "linear 83.0 %, kNN 50.0 %"
