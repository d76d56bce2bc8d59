"""What d2v runs says of run folders, whole ones and torn ones."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
import yaml

from d2v.runs.listing import find_runs, newest_run, note_end, summarise, table_of_runs


def _run(folder: Path, command: str = "pretrain", steps: int = 3, max_steps: int = 10, when: float = 1e9) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / "run.json").write_text(json.dumps([{"command": ["d2v", command, "seed=1"]}]))
    frontends = {"image": {}}
    config = {"name": "image_tiny", "trainer": {"max_steps": max_steps}, "model": {"encoder": {"frontends": frontends}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = "".join(f"{step},{1 / step},{0.5 if step == 2 else 0.25}\n" for step in range(1, steps + 1))
    (folder / "metrics.csv").write_text(f"step,train/loss,probe/knn\n{rows}")
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}.ckpt"
    checkpoint.touch()
    for path in (checkpoint, *folder.iterdir(), folder):
        os.utime(path, (when, when))
    return folder


def test_states(tmp_path: Path) -> None:
    stopped = summarise(_run(tmp_path / "image_tiny" / "a"))
    assert (stopped.command, stopped.name, stopped.state) == ("pretrain", "image_tiny (image)", "stopped")
    assert (stopped.step, stopped.max_steps, stopped.loss, stopped.best) == (3, 10, 1 / 3, "knn 0.5")
    assert str(stopped).endswith("(pretrain image_tiny (image), stopped, step 3 of 10)")
    assert summarise(_run(tmp_path / "b", steps=10)).state == "finished"
    finetuned = _run(tmp_path / "c", "finetune", steps=10)
    assert summarise(finetuned).state == "stopped"  # before it was scored
    (finetuned / "results.json").write_text("{}")
    assert summarise(finetuned).state == "finished"
    failed = _run(tmp_path / "d")
    note_end(failed, ValueError("no"))
    assert summarise(failed).state == "failed"
    error = RuntimeError("nan")
    error.state = "diverged"  # type: ignore[attr-defined]
    note_end(failed, error)
    assert summarise(failed).state == "diverged"


def test_a_run_that_is_written_to_is_running(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    with (run / ".lock").open("w") as file:
        assert summarise(run).state == "stopped"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert summarise(run).state == "running"
    assert summarise(run).state == "stopped"


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.csv", "ended.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 50, b"{", b"[1", b"\xff\xfe", b"step,train/loss\n1,0.", b"&a [*a, *a]"]
)
def test_torn_files_leave_cells_empty(tmp_path: Path, name: str, content: bytes) -> None:
    run = _run(tmp_path / "image_tiny" / "a")
    (run / "pretrain.log").touch()
    (run / name).write_bytes(content)
    assert find_runs(tmp_path) == [run]
    found = summarise(run)
    assert (found.command, found.state, found.step) == ("pretrain", "stopped", 3)


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    with (run / "metrics.csv").open("a") as file:
        file.write("4,0.1")
    assert summarise(run).loss == 1 / 3


def test_runs_are_found_and_the_newest_is_known(tmp_path: Path) -> None:
    old, new = _run(tmp_path / "x" / "old"), _run(tmp_path / "multirun" / "t" / "0", when=2e9)
    tuned = _run(tmp_path / "y" / "sweep" / "cola_lr1_seed0", "finetune", when=3e9)
    (tmp_path / "empty").mkdir()
    evaluated = new / "evaluate" / "t"
    evaluated.mkdir(parents=True)
    (evaluated / "evaluate.log").touch()
    without = _run(tmp_path / "x" / "without", when=4e9)
    (without / "checkpoints" / "step-00000003.ckpt").unlink()
    assert find_runs(tmp_path) == sorted([old, new, tuned, without])
    assert newest_run(tmp_path) == tuned
    assert newest_run(tmp_path, ("pretrain",)) == new
    assert newest_run(tmp_path / "empty") is None
    assert newest_run(tmp_path / "nothing") is None


def test_the_table_has_the_newest_last(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, when=1e9 - age) for name, age in (("new", 90), ("old", 200_000), ("mid", 7200))]
    lines = table_of_runs([summarise(run) for run in runs], now=1e9).splitlines()
    assert lines[0].split() == ["run", "command", "experiment", "or", "task", "state", "step", "loss", "best", "age"]
    assert [line.split()[0] for line in lines[1:]] == [str(tmp_path / name) for name in ("old", "mid", "new")]
    assert [line.split("  ")[-1].strip() for line in lines[1:]] == ["2 d", "2 h", "2 min"]
    assert "3/10  0.3333  knn 0.5" in lines[1]


def test_a_resumed_run_ends_at_the_steps_of_its_last_start(tmp_path: Path) -> None:
    run = _run(tmp_path / "image_tiny" / "a", steps=3, max_steps=10)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps([*record, {**record[-1], "max_steps": 20}]))
    assert summarise(run).max_steps == 20
