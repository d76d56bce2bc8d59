"""Folders of commands that failed are taken away; results of evaluation lie with the run."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from d2v.cli.folders import note_given, note_making, tidying
from d2v.cli.run_dir import new_folder, results_parent


def _fail(folder: Path, *files: str, given: bool = False) -> None:
    """A command that makes a folder, and files there, and fails."""

    def command() -> None:
        with tidying():
            note_given([f"hydra.run.dir='{folder}'"]) if given else note_making(folder)
            for name in (".hydra/config.yaml", "pretrain.log", *files):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        command()


@pytest.mark.parametrize("given", [False, True])
def test_a_folder_that_was_made_and_not_used_is_removed(tmp_path: Path, given: bool) -> None:
    _fail(tmp_path / "outputs" / "name" / "time", given=given)
    assert not (tmp_path / "outputs").exists()
    (tmp_path / "outputs" / "other").mkdir(parents=True)
    _fail(tmp_path / "outputs" / "name" / "time", given=given)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["other"]


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "time"
    folder.mkdir(parents=True)
    _fail(folder, given=True)
    assert (folder / ".hydra" / "config.yaml").is_file()


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml", "checkpoints/step-00000001.ckpt", "notes.txt"])
def test_a_folder_that_was_used_stays(tmp_path: Path, name: str) -> None:
    _fail(tmp_path / "time", name)
    assert (tmp_path / "time" / name).is_file()


def test_jobs_of_a_sweep(tmp_path: Path) -> None:
    """What the first left stays; what the second did not use goes."""
    _fail(tmp_path / "sweep", "multirun.yaml", "0/.hydra/config.yaml", "0/metrics.csv", "1/.hydra/config.yaml")
    kept = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert kept == [".hydra", "0", "multirun.yaml", "pretrain.log"]


def test_success_removes_nothing(tmp_path: Path) -> None:
    with tidying():
        note_making(tmp_path / "time")
        (tmp_path / "time").mkdir()
    assert (tmp_path / "time").is_dir()


@pytest.mark.parametrize("where", ["output_dir", "hydra.run.dir"])
def test_failed_commands_leave_nothing(runs: ModuleType, tmp_path: Path, where: str) -> None:
    result = runs.d2v_command("pretrain", *runs.TINY, f"{where}={tmp_path / 'out'}", "mask.num_masks=17")
    assert result.status == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [("hydra.run.dir=", "hydra.run.dir=: an empty path; give a folder"), ("hydra.run.dir=/proc/x/y", "/proc/x")],
)
def test_a_run_folder_that_cannot_be_had_is_one_message(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runs.d2v_command("pretrain", *runs.TINY, word)
    assert result.status == 1
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        new_folder(tmp_path / "file" / "run")


def test_results_lie_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = run / "checkpoints" / "step-00000001.ckpt"
    checkpoint.touch()
    export = tmp_path / "export"
    export.mkdir()
    for path, given, expected in (
        (run, [], run), (checkpoint, [], run), (run / "checkpoints", [], run), (export, [], "outputs"),
        (tmp_path / "missing", [], "outputs"), (None, [], "outputs"), (run, ["output_dir=x"], "outputs"),
    ):  # fmt: skip
        assert results_parent(path and str(path), "outputs", given) == str(expected)
    assert results_parent([str(run), str(run)], "outputs", []) == "outputs"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert results_parent(str(run), "outputs", []) == "outputs"
