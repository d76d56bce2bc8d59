"""The results of a sweep: which learning rate is chosen, and the table."""

from __future__ import annotations

from statistics import mean, median, pstdev

import pytest

from d2v.runs.results import Results, Row
from d2v.tasks.sweep import choose, sweep_table


def _run(metric: str, val: float, other: float = 0.5) -> Results:
    model = "fine-tuned model"
    sets = {"val": {metric: val}, "b": {metric: other}, "t": {}}
    return Results([Row(model, scores, name, metric) for name, scores in sets.items()])


VALUES = {1e-5: (0.6, 0.6, 0.6), 2e-5: (0.9, 0.5, 0.55)}


def test_the_best_over_seeds_is_chosen() -> None:
    runs = {(lr, seed): _run("accuracy", value) for lr, values in VALUES.items() for seed, value in enumerate(values)}
    val, other = choose("rte", runs, mean, {0.1: "why"})
    assert (val.name, val.set, val.metric, val.lr) == ("rte", "val", "accuracy", 2e-5)
    assert val.scores == {"accuracy": pytest.approx(0.65)}
    assert val.std == {"accuracy": pytest.approx(pstdev(VALUES[2e-5]))}
    assert val.diverged == {"0.1": "why"}
    assert (other.set, other.scores, other.std, other.lr) == ("b", {"accuracy": 0.5}, {"accuracy": 0.0}, 2e-5)
    assert choose("rte", runs, median, {})[0].lr == 1e-5


@pytest.mark.parametrize("metric", ["wer", "cer", "wer_cer"])
def test_of_error_rates_the_lowest_is_best(metric: str) -> None:
    runs = {(lr, 0): _run(metric, value) for lr, value in ((1e-5, 0.4), (2e-5, 0.3), (3e-5, 0.35))}
    assert choose("ctc", runs, mean, {})[0].lr == 2e-5


def test_without_a_learning_rate_that_held_there_are_no_scores() -> None:
    assert choose("rte", {}, mean, {0.1: "a", 1e38: "b"}) == [Row("rte", {}, diverged={"0.1": "a", "1e+38": "b"})]


def _rows(task: str, value: float, *others: float) -> list[Row]:
    names = ("val", "val_mismatched")
    return [
        Row(task, {"accuracy": v}, name, "accuracy", {"accuracy": 0.01}, lr=2e-5)
        for name, v in zip(names, (value, *others), strict=False)
    ]


def test_glue_is_one_more_row_of_the_published_table() -> None:
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli")
    rows = [row for name in tasks for row in _rows(f"glue/{name}", 0.5)] + _rows("glue/mnli", 0.9, 0.8)
    lines = sweep_table(rows, 5, "median").splitlines()
    ours = "| this sweep, median of 5 seeds | 90.0/80.0 | " + "50.0 | " * 7 + "55.0 |"
    places = [i for i, line in enumerate(lines) if line.startswith(("| data2vec, spans masked | 82.8/83.4 |", ours))]
    assert places == [places[0], places[0] + 1]  # nothing between them
    assert len({line.count("|") for line in lines[places[0] - 5 : places[0] + 2]}) == 1
    assert "| glue/mnli | val_mismatched | accuracy | 80.0 ± 1.0 | 2e-05 |" in lines
    assert "| average without WNLI | val | | 55.0 | |" in lines


def test_what_is_not_there_is_not_averaged() -> None:
    hopeless = Row("glue/rte", {}, diverged={"0.01": "why", "0.1": "why"})
    table = sweep_table([hopeless, *_rows("glue/cola", 0.5), *_rows("glue/sst2", 0.6)], 1, "mean")
    assert "| this sweep, one seed | – | – | diverged | – | – | – | 50.0 | 60.0 | – |" in table
    assert "| glue/rte | | | diverged | 0.01 diverged; 0.1 diverged |" in table
    assert "| glue/cola | val | accuracy | 50.0 | 2e-05 |" in table
    assert "average without WNLI" not in table
    assert "BERT" not in sweep_table([*_rows("glue/wnli", 0.5), *_rows("image_classification", 0.5)], 1, "mean")
