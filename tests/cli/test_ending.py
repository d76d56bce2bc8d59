"""How training commands end: statuses, words, and signals that are handed on to a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from d2v.cli import ending, sweep
from d2v.cli.ending import resume_command, stopped_early, wait_for
from d2v.cli.launch import Status
from d2v.lit.callbacks.checkpoint import CheckpointEvery
from d2v.lit.callbacks.stop import StopWhenTold


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("/runs/image_tiny/2026-01-01_00-00-00", "resume=/runs/image_tiny/2026-01-01_00-00-00"),
        ("/my runs/a,b", "'resume=\"/my runs/a,b\"'"),
        ("/a=b", "'resume=\"/a=b\"'"),
    ],
)
def test_what_to_type(folder: str, word: str) -> None:
    assert resume_command("finetune", Path(folder)) == f"d2v finetune {word}"


def trainer(tmp_path: Path, reason: str | None, number: int | None, step: int = 3, rank: int = 0) -> Any:
    stop = StopWhenTold()
    stop.reason, stop._signal = reason, None if number is None else signal.Signals(number)  # type: ignore[assignment]
    return SimpleNamespace(
        callbacks=[CheckpointEvery(tmp_path), stop], global_step=step, max_steps=9, is_global_zero=rank == 0
    )


@pytest.mark.parametrize(
    ("reason", "number", "rank", "status"),
    [("signal", 15, 0, 143), ("signal", 2, 0, 130), ("max_time", None, 0, 75), ("signal", 15, 1, 0)],
)
def test_statuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, number: int | None, rank: int, status: int
) -> None:
    mode = SimpleNamespace(mode=RunMode.RUN)
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: mode))
    with pytest.raises(SystemExit) as ended:
        stopped_early(trainer(tmp_path, reason, number, rank=rank), "pretrain", tmp_path, None)
    assert ended.value.code == status


def test_the_time_of_one_of_several_runs_stops_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: SimpleNamespace(mode=RunMode.MULTIRUN)))
    monkeypatch.setattr(Status, "value", 0)
    assert stopped_early(trainer(tmp_path, "max_time", None), "pretrain", tmp_path, None)
    assert Status.value == 75
    assert f"after step 3 of 9\nto go on: d2v pretrain resume={tmp_path}\n" in capsys.readouterr().out


def test_a_run_that_is_done_was_not_stopped(tmp_path: Path) -> None:
    assert not stopped_early(trainer(tmp_path, None, None), "pretrain", tmp_path, None)
    assert not stopped_early(trainer(tmp_path, "signal", 15, step=9), "pretrain", tmp_path, None)
    with pytest.raises(SystemExit):  # it has still to be scored
        stopped_early(trainer(tmp_path, "signal", 15, step=9), "finetune", tmp_path, None, scores=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_handed_on_to_a_child(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    assert wait_for(process) == 128 + number
    timer.join()
    assert signal.getsignal(number) == before


def test_a_sweep_ends_as_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "wait_for", lambda process: 143)
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda command, **options: None)
    with pytest.raises(SystemExit) as ended:
        sweep.one_run(tmp_path / "run", ["task=glue/rte"])
    assert ended.value.code == 143
    assert f"with hydra.run.dir={tmp_path} goes on" in capsys.readouterr().out
    assert 143 in ending.STOPPED
