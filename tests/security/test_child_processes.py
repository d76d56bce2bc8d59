"""Processes that d2v starts import nothing that lies in the current folder, and git runs no program of a stranger's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from d2v.cli import sweep
from d2v.lit import machine


class Recorded(Exception):
    """Raised instead of starting a process."""


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which yaml.py leaves a mark when it is imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "yaml.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'w')\n")
    monkeypatch.chdir(folder)
    return folder


def _imports_yaml(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run([*command, "-c", "import yaml"], env=environment, check=True)


def test_a_sweep_imports_nothing_from_the_current_folder(hostile_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **options: Any) -> None:
        assert not options
        commands.append(command)
        raise Recorded

    with monkeypatch.context() as patch:
        patch.setattr(sweep.subprocess, "Popen", record)
        with pytest.raises(Recorded):
            sweep.one_run(hostile_folder / "run", ["task=image_classification"])
    (command,) = commands
    _imports_yaml(command[: command.index("-m")], dict(os.environ))
    assert not (hostile_folder.parent / "EXECUTED").exists()


def test_what_a_command_starts_imports_nothing_from_the_current_folder(
    runs: ModuleType, hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's processes, multiprocessing's and submitit's get the environment of the command."""
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("d2v.cli.info.describe_run", lambda seed: seen.append(dict(os.environ)) or sys.exit(0))
    runs.d2v_command("info")
    _imports_yaml([sys.executable], seen[0])
    assert not (hostile_folder.parent / "EXECUTED").exists()
    package = hostile_folder.parent / "packages"
    package.mkdir()
    (package / "my_frontend.py").write_text("")
    subprocess.run(
        [sys.executable, "-c", "import my_frontend"], env={**seen[0], "PYTHONPATH": str(package)}, check=True
    )


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def hostile_checkout(tmp_path: Path) -> Path:
    """A repository that asks git to run a program of its own for every look at its files."""
    folder = tmp_path / "project"
    folder.mkdir()
    _git(folder, "init")
    (folder / "file").write_text("1")
    _git(folder, "add", "file")
    _git(folder, "commit", "--message", "first")
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/EXECUTED'\n")
    program.chmod(0o755)
    _git(folder, "config", "core.fsmonitor", str(program))
    return folder


def test_git_is_asked_of_the_code_itself_only(hostile_checkout: Path) -> None:
    inside = hostile_checkout / ".venv" / "d2v"
    inside.mkdir(parents=True)
    assert machine._git_revision(inside) is None
    found = machine._git_revision(hostile_checkout)
    assert found is not None
    assert not found["dirty"]
    assert len(found["revision"]) == 40
    assert not (hostile_checkout.parent / "EXECUTED").exists()


def test_git_ignores_the_repository_of_a_hook(
    hostile_checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert machine._git_revision(hostile_checkout) is not None


def test_the_record_of_a_run_names_the_revision_of_this_checkout(repo: Path) -> None:
    record = machine.describe_run(seed=0)
    if (repo / ".git").exists():
        assert len(record["git"]["revision"]) == 40
    json.dumps(record)
