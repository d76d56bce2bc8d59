"""Disks that are full, killed exports, two commands at once: one message, nothing half, nothing mixed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from d2v.interop.checkpoints import load_encoder
from d2v.runs.exports import check_export

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

START = [sys.executable, "-c", "from d2v.cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path_factory.mktemp('runs')}", *runs.TINY)
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_a_full_disk_in_extract(runs: ModuleType, run: Path, small_disk: Path, name: str) -> None:
    command = ["extract", f"checkpoint={run}", f"output={small_disk / name}"]
    result = subprocess.run([*START, *command], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 1
    assert f"d2v: error: output={small_disk / name}: could not be written" in result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("format", ["safetensors", "huggingface", "onnx", "fairseq"])
def test_a_full_disk_in_export(runs: ModuleType, run: Path, small_disk: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    result = runs.d2v_command("export", f"checkpoint={run}", f"output={small_disk / 'e'}", f"format={format}")
    assert result.status == 1
    assert f"d2v: error: output={small_disk / 'e'}: could not be written" in result.err
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
    assert list(small_disk.iterdir()) == []


def test_a_killed_export_leaves_the_old_or_the_new(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    """Six kills at random moments of exports of teacher and student in turn, over one another."""
    folder, rng = tmp_path / "e", random.Random(0)
    assert runs.d2v_command("export", f"checkpoint={run}", f"output={folder}").status in (0, None)
    slow = "import d2v.runs.exports as e, time\n"
    slow += "for n in ('_write_sums', '_publish', '_exchange'):\n"
    slow += "    setattr(e, n, (lambda f: lambda *a: (time.sleep(.2), f(*a), time.sleep(.2))[1])(getattr(e, n)))\n"
    slow += "print('ready', flush=True)\n"
    for kill in range(6):
        network = ("teacher", "student")[kill % 2]
        command = [sys.executable, "-c", f"{slow}{START[-1]}", "export", f"checkpoint={run}", f"output={folder}",
                   f"network={network}"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(6000):
                if list(tmp_path.glob(".e.*.part")) or process.poll() is not None:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
        assert check_export(folder, ["encoder.safetensors", "config.yaml"])
        load_encoder(folder)
    assert runs.d2v_command("export", f"checkpoint={run}", f"output={folder}").status in (0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]  # and nothing of those that were killed


def test_the_second_of_two_commands_in_one_folder_is_told(runs: ModuleType, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["pretrain", *runs.TINY, "trainer.max_steps=100000", f"hydra.run.dir={folder}"]
    with (
        log.open("wb") as file,
        subprocess.Popen([*START, *command], stdout=file, stderr=file, env=ENVIRONMENT) as first,
    ):
        for _ in range(6000):
            if (folder / "metrics.csv").exists() or first.poll() is not None:
                break
            time.sleep(0.01)
        before = (folder / ".hydra" / "overrides.yaml").read_bytes()
        for given in (f"hydra.run.dir={folder}", f"resume={folder}"):
            second = runs.d2v_command("pretrain", *runs.TINY, "trainer.max_steps=1", given)
            assert second.status == 1
            assert f"d2v: error: {folder}: process {first.pid} on " in second.err
        assert (folder / ".hydra" / "overrides.yaml").read_bytes() == before
        assert len(json.loads((folder / "run.json").read_text())) == 1
        first.kill()
        first.wait()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    third = runs.d2v_command("pretrain", *runs.TINY, "trainer.max_steps=1", f"hydra.run.dir={folder}")
    assert third.status in (0, None), third.err


def test_two_evaluations_in_one_second(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    """The results of one do not take the place of the other's."""
    command = ["evaluate", f"checkpoint={run}", "baselines=false", "probe=knn", f"output_dir={tmp_path}"]
    both = [subprocess.Popen([*START, *command], env=ENVIRONMENT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    found = list(tmp_path.rglob("results.json"))
    assert len(found) + len(list(run.rglob("results.json"))) == 2
