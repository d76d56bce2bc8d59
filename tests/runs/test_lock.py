"""One writer a folder: whoever comes second is told who holds it; the dead hold nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v.runs import lock
from d2v.runs.lock import InUse, lock_folder, unlock_folders

HOLD = """
import sys, time
from d2v.runs.lock import lock_folder
lock_folder(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    unlock_folders()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``tmp_path / "run"``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    for folder in (tmp_path / "run", link):
        with pytest.raises(InUse, match=rf"run: process {other.pid} on {socket.gethostname()} is writing.*resume="):
            lock_folder(folder)
    lock_folder(tmp_path / "another")


def test_the_dead_hold_nothing(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "run" / lock.HOLDER).read_text())["pid"] == other.pid
    lock_folder(tmp_path / "run")
    assert json.loads((tmp_path / "run" / lock.HOLDER).read_text())["pid"] == os.getpid()


def test_a_process_may_ask_twice_and_lets_go(tmp_path: Path) -> None:
    for _ in range(2):
        lock_folder(tmp_path / "run")
    unlock_folders()
    assert not (tmp_path / "run" / lock.HOLDER).exists()
    done = subprocess.run([sys.executable, "-c", HOLD.replace("60", "0"), str(tmp_path / "run")], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("key", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_ranks_of_one_job_share_it(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(key, "1")
    lock_folder(tmp_path / "run")
    monkeypatch.setenv(key, "0")
    with pytest.raises(InUse):
        lock_folder(tmp_path / "run")


def test_a_holder_on_another_machine_is_waited_for(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine may be gone, and a requeued job must not fail for it."""
    monkeypatch.setattr(lock, "_PATIENCE_ELSEWHERE", 0.5)
    (tmp_path / "run" / lock.HOLDER).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(InUse, match="process 1 on elsewhere"):
        lock_folder(tmp_path / "run")
    assert "run is locked by process 1 on elsewhere: waiting" in caplog.text
    other.kill()
    other.wait()
    lock_folder(tmp_path / "run")


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), NotImplementedError("no flock")])
def test_where_nothing_can_be_locked_it_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    lock_folder(tmp_path / "run")
    assert f"cannot be locked ({error})" in caplog.text


def test_a_living_process_of_somebody_else_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = {"pid": 1, "host": socket.gethostname()}

    def kill(error: type[OSError]) -> float:
        def refuse(pid: int, number: int) -> None:
            raise error

        monkeypatch.setattr(os, "kill", refuse)
        return lock._patience(holder)

    assert kill(PermissionError) == 0
    assert kill(ProcessLookupError) == lock._PATIENCE > 0
