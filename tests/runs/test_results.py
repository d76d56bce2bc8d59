"""``results.json``: written, read, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2v.runs.results import Results, Row, read_results, write_results

ROWS = (
    Row("raw pixels", {"linear": 0.83, "knn": 0.5}),
    Row("fine-tuned model", {"top1": 0.25}, "test", "top1", samples=4, skipped=["a.png: empty file"]),
    Row("glue/rte", {"accuracy": 0.5}, metric="accuracy", std={"accuracy": 0.01}, lr=1e-5, diverged={"0.1": "why"}),
    Row("glue/cola", {}, diverged={"0.1": "why"}),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    results = Results(ROWS, {"checkpoint": "runs/a", "step": 7})
    path = write_results(tmp_path / "new", results, "| a table |\n")
    assert read_results(tmp_path / "new") == Results(
        tuple(Row(**{**vars(row), "skipped": list(row.skipped) or ()}) for row in ROWS), results.about
    )
    assert path.with_name("results.md").read_text() == "| a table |\n"


def test_the_file_has_one_shape_without_what_is_empty(tmp_path: Path) -> None:
    path = write_results(tmp_path, Results(ROWS[:2], {"step": 7}), "")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "step": 7,
        "rows": [
            {"name": "raw pixels", "scores": {"linear": 0.83, "knn": 0.5}, "set": "val"},
            {
                "name": "fine-tuned model",
                "scores": {"top1": 0.25},
                "set": "test",
                "metric": "top1",
                "samples": 4,
                "skipped": ["a.png: empty file"],
            },
        ],
    }


def test_a_probe_that_did_not_converge_says_so_in_the_file(tmp_path: Path) -> None:
    rows = (
        Row("a", {"linear": 0.5}, c=[0.1], converged=False, notes=["odd"]),
        Row("b", {"linear": 0.5}, converged=True),
    )
    path = write_results(tmp_path, Results(rows), "")
    assert [row.get("converged") for row in json.loads(path.read_text())["rows"]] == [False, True]
    read = read_results(tmp_path)
    assert read is not None
    assert read.rows == rows


def test_a_number_that_json_lacks_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write_results(tmp_path, Results(ROWS), "")
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, Results([Row("diverged", {"knn": float("nan")})]), "")
    assert "raw pixels" in path.read_text()


def test_a_row_is_found_by_its_set() -> None:
    assert Results(ROWS).row("test") is ROWS[1]
    assert Results(ROWS).row("val") is ROWS[0]
    with pytest.raises(KeyError, match="other"):
        Results(ROWS).row("other")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": [{"name": "a"}]}', '{"rows": [3]}', '{"rows": 3}',
                                     '{"rows": [{"name": "a", "scores": {}, "other": 1}]}'])  # fmt: skip
def test_damaged_results_are_none_with_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_results(tmp_path) is None
    assert not caplog.text
    (tmp_path / "results.json").write_text(content)
    assert read_results(tmp_path) is None
    assert "results.json" in caplog.text
