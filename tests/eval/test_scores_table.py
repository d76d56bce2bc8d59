"""Tables of results."""

from __future__ import annotations

import numpy as np

from d2v.eval.results import scores_table


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
