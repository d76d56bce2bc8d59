"""Jobs that ask Slurm to run them again, and jobs that are submitted; scripts/prove_slurm.py shows a real cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_module

from d2v.cli import slurm
from d2v.cli.slurm import requeue


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for ``scontrol`` was called with."""
    file = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {file}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    return file


def test_which_job_is_meant(asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.raises(SystemExit) as ended:
        requeue("auto", is_global_zero=True)
    assert ended.value.code == 0
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    for first in (True, False):
        with pytest.raises(SystemExit):
            requeue("auto", is_global_zero=first)
    assert asked.read_text() == "requeue 9\nrequeue 8_1\n"
    assert "job 8_1" in capsys.readouterr().out


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "resume", "again"),
    [(signal.SIGUSR1, "auto", True), (signal.SIGUSR2, "auto", True), (signal.SIGTERM, "auto", False),
     (signal.SIGUSR1, "null", False)],
)  # fmt: skip
def test_a_signal_saves_and_requeues(
    runs: ModuleType, asked: Path, tmp_path: Path, number: signal.Signals, resume: str, again: bool
) -> None:
    command = ["pretrain", f"hydra.run.dir={tmp_path / 'run'}", *runs.TINY, "trainer.max_steps=4000",
               f"resume={resume}", "callbacks.checkpoint.every_n_steps=3", "callbacks.checkpoint.keep=1"]  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "d2v.cli.main", *command], stdout=file, stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "5"},
        )  # fmt: skip
    try:
        while not list((tmp_path / "run").glob("checkpoints/step-*.ckpt")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == (0 if again else 128 + number), log.read_text()
    finally:
        process.kill()
        process.wait()
    assert (asked.read_text() if asked.exists() else "") == ("requeue 5\n" if again else "")
    said = log.read_text()
    assert ("takes resume=auto" in said) == (resume == "null")
    step = int(said.partition("stopping after step ")[2].split()[0])
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}.ckpt").is_file()


@pytest.mark.parametrize("command", [["pretrain"], ["finetune", "task=glue/rte", "checkpoint=RUN"]])
def test_the_launcher_takes_its_numbers_from_the_trainer(command: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_module("d2v.conf", version_base="1.3"):
        overrides = [*command[1:], "launcher=slurm", "trainer.devices=4", "trainer.num_nodes=2"]
        cfg = compose(command[0], overrides=overrides, return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert cfg.resume == "auto"


@pytest.mark.parametrize(
    ("package", "path", "said"),
    [(None, os.defpath, "pip install hydra-submitit-launcher"), (object(), "/nowhere", "no sbatch or no srun here")],
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: object, path: str, said: str) -> None:
    monkeypatch.setattr(slurm, "find_spec", lambda name: package)
    monkeypatch.setenv("PATH", path)
    with pytest.raises((ImportError, OSError), match=f"launcher=slurm.*{said}"):
        slurm.check_launcher()


def test_without_slurm_one_message(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = runs.d2v_command("pretrain", "launcher=slurm", f"hydra.sweep.dir={tmp_path}")
    assert result.status == 1
    assert result.err.startswith("d2v: error: launcher=slurm")
