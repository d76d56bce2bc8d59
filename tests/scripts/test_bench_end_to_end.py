"""The benchmark from end to end: the loop by hand computes what the trainer computes, and costs are judged in turns."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("end_to_end")


@pytest.fixture(scope="module")
def environment() -> Any:
    return importlib.import_module("environment")


def _result(steps_per_s: float, cpu_s: float) -> dict[str, float]:
    return {
        "start_s": 5.0,
        "first_step_s": 0.1,
        "steps_per_s": steps_per_s,
        "cpu_s_per_step": cpu_s,
        "loss": 1.0,
    }


def test_a_trainers_cost_is_judged_within_each_turn(bench: Any) -> None:
    turns = {
        "d2v trainer": [_result(8.0, 0.11), _result(4.0, 0.12)],
        "d2v by hand": [_result(10.0, 0.1), _result(4.0, 0.1)],  # the second turn on a slower machine
    }
    cost = bench.costs(turns, lambda result: 1 / result["steps_per_s"])["d2v"]
    assert cost.values == pytest.approx((0.25, 0.0))
    lines = " ".join(bench.cost_table(turns).split())
    assert "| d2v trainer | 5.0 | 100 | 6.00 | 115.0 | +12.5% (+0.0% to +25.0%) | +15.0% (+10.0% to +20.0%) |" in lines


def test_rows_that_are_being_written_are_not_read(bench: Any, tmp_path: Path) -> None:
    assert bench.metric_rows(tmp_path) == []
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.")
    assert bench.metric_rows(tmp_path) == [{"step": "1", "train/loss": "0.5"}]


@pytest.mark.parametrize(("first", "steps"), [("1", "4"), ("4", "4"), ("3", "4")])
def test_steps_that_cannot_be_timed_are_refused(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: str, steps: str
) -> None:
    monkeypatch.setattr("sys.argv", ["end_to_end.py", "--first", first, "--steps", steps])
    with pytest.raises(SystemExit):
        bench.main()
    assert f"--first {first}: more than 1, less than --steps 4 and a divisor of it" in capsys.readouterr().err


@pytest.mark.slow
def test_trainer_and_loop_by_hand_have_the_same_loss(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.encoder.embed_dim=32", "model.encoder.num_heads=2", "global_batch_size=8"]
    words = ["--steps", "24", "--first", "8", "--turns", "1", "--threads", "1", "--device", "cpu", "--only", "d2v"]
    monkeypatch.setattr("sys.argv", ["end_to_end.py", *small, *words, "--json", str(tmp_path / "e2e.json")])
    bench.main()
    turns = json.loads((tmp_path / "e2e.json").read_text())["turns"]
    (trainer,), (hand,) = turns["d2v trainer"], turns["d2v by hand"]
    assert hand["loss"] == pytest.approx(trainer["loss"], rel=1e-6)
    for result in (trainer, hand):
        assert min(result["start_s"], result["first_step_s"], result["steps_per_s"], result["cpu_s_per_step"]) > 0
    assert "| d2v trainer |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["repository", "full"])
def test_an_environment_is_made_outside_and_in_a_folder_of_its_own(environment: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    folder, message = {
        "repository": (environment.REPOSITORY / "env", "choose a folder outside of"),
        "full": (tmp_path, "is not an environment and not empty"),
    }[name]
    with pytest.raises(ValueError, match=message):
        environment.make(folder)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert not (environment.REPOSITORY / "env").exists()


def test_an_environment_uses_the_packages_that_are_there(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    run = subprocess.run
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **_: commands.append(command))
    python = environment.make(tmp_path / "env")
    assert environment.make(tmp_path / "env") == python  # the second time from what is there
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert "--no-deps" in command
    assert "torch" not in " ".join(command).replace("stable", "")
    assert " ".join(command) in capsys.readouterr().out
    code = "import torch, d2v; print(torch.__version__, d2v.__file__)"
    said = [
        run([one, "-c", code], capture_output=True, text=True, check=True).stdout for one in (python, sys.executable)
    ]
    assert said[0] == said[1]
