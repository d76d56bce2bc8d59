"""Exactly the files a run leaves behind, and nothing where it was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

RUN_FILES = {
    ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "config.yaml", "run.json", "metrics.csv",
    "pretrain.log", "checkpoints/step-00000004.ckpt", ".lock",
}  # fmt: skip


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.slow
def test_a_run_leaves_exactly_these_files_and_warns_of_nothing(runs: ModuleType, tmp_path: Path) -> None:
    """As a user starts it: a process of its own, in an empty folder, with the default settings."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    result = subprocess.run(
        [sys.executable, "-W", "default", "-m", "d2v.cli.main", "pretrain", *runs.TINY, "trainer.precision=auto"],
        capture_output=True, text=True, cwd=tmp_path / "work", env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    assert all(line.startswith("step ") for line in result.stderr.splitlines()), result.stderr
    (run,) = (tmp_path / "work" / "outputs" / "image_tiny").iterdir()
    assert _files(run) == RUN_FILES
    assert _files(tmp_path / "work") == {
        f"{run.relative_to(tmp_path / 'work').as_posix()}/{name}" for name in RUN_FILES
    }
    assert not {name for name in _files(tmp_path / "home") if not name.startswith(".cache/matplotlib/")}


def test_what_lies_beside_a_checkpoint_repeats_the_run(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "seed=3")
    (record,) = json.loads((run / "run.json").read_text())
    assert record["seed"] == 3
    assert "git" in record
    assert record["git"] is None or {"revision", "dirty"} <= record["git"].keys()
    assert {"torch", "lightning", "hydra-core"} <= record["packages"].keys()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "${" not in (run / "config.yaml").read_text()  # resolved
    assert config["seed"] == 3
    assert config["model"]["encoder"]["embed_dim"] == 32


def test_other_commands_leave_only_what_was_asked_for(
    runs: ModuleType, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.pretrain(tmp_path / "runs", *runs.folder_data(images), "trainer.max_steps=1")
    before = _files(run)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for arguments in (
        ["evaluate", "probe=knn", "probe.k=5"],
        ["extract", "output=f.safetensors"],
        ["export", "output=encoder"],
        ["info"],
    ):
        result = runs.d2v_command(*arguments, f"checkpoint={run}")
        assert result.status in (0, None), result.err
    evaluated = {name for name in _files(run) - before if name.startswith("evaluate/")}
    assert {name.partition("/.hydra/")[2] or name.rpartition("/")[2] for name in evaluated} == {
        "results.json", "results.md", "evaluate.log", "config.yaml", "hydra.yaml", "overrides.yaml",
    }  # fmt: skip
    assert _files(tmp_path / "here") == {
        "f.safetensors", "encoder/README.md", "encoder/SHA256SUMS", "encoder/config.yaml",
        "encoder/encoder.safetensors",
    }  # fmt: skip
    assert _files(run) - evaluated == before
