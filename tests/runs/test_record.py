"""run.json: an entry a start, the order of runs, and what is survived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2v.lit.machine import describe_run
from d2v.runs.record import read_run_record, run_number, runs_begun_last_first, write_run_record


def test_run_record_grows_by_an_entry_a_start(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.json"
    for seed in (3, 4):
        write_run_record(path, describe_run(seed))
    first, second = json.loads(path.read_text())
    assert (first["seed"], second["seed"]) == (3, 4)
    assert first["number"] == second["number"] == 1
    assert {"d2v", "command", "git", "python", "packages", "platform", "cores", "device"} <= first.keys()
    assert {"torch", "lightning", "hydra-core"} <= first["packages"].keys()


def begin(folder: Path) -> Path:
    write_run_record(folder / "run.json", {"seed": 0})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.ckpt").touch()
    return folder


def test_runs_are_numbered_in_the_order_in_which_they_begin_whatever_the_clock_says(tmp_path: Path) -> None:
    first, second, third = (begin(tmp_path / name) for name in ("2099-01-01", "2026-01-01", "2030-01-01"))
    assert [run_number(run) for run in (first, second, third)] == [1, 2, 3]
    write_run_record(first / "run.json", {"seed": 0})  # resumed: it was not begun anew
    assert runs_begun_last_first(tmp_path) == [third, second, first]
    (third / "checkpoints" / "step-00000001.ckpt").unlink()
    assert runs_begun_last_first(tmp_path) == [second, first]


def test_runs_without_numbers_go_by_name(tmp_path: Path) -> None:
    numbered = begin(tmp_path / "2020-01-01")
    for name in ("2021-01-01", "2022-01-01"):
        (begin(tmp_path / name) / "run.json").unlink()
    assert [run.name for run in runs_begun_last_first(tmp_path)] == [numbered.name, "2022-01-01", "2021-01-01"]


DAMAGED = [b"", b"[{", b"\xff\xfe", b"{}", b"[]", b"[1]", b"1", b"[" * 100_000, bytes(99)]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:4]))
def test_a_damaged_record_is_named_kept_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = begin(tmp_path / "a") / "run.json"
    other = begin(tmp_path / "b")
    path.write_bytes(content)
    assert read_run_record(path) == []
    assert str(path) in caplog.text
    assert runs_begun_last_first(tmp_path) == [other, path.parent]
    write_run_record(path, {"seed": 1})
    assert [entry["seed"] for entry in read_run_record(path)] == [1]
    assert path.with_name("run.json.damaged").read_bytes() == content


def test_a_record_of_nonsense_numbers_counts_as_none(tmp_path: Path) -> None:
    path = begin(tmp_path / "a") / "run.json"
    for number in (True, -1, "9", None, [], 2.5):
        path.write_text(json.dumps([{"number": number}]))
        assert run_number(path.parent) == 0
