"""``latest`` in the place of a path."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from d2v.cli.latest import name_latest


def _run(folder: Path, command: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001.ckpt").touch()
    (folder / "run.json").write_text(json.dumps([{"command": ["d2v", command]}]))
    return folder


def test_latest_is_the_newest_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _run(tmp_path / "x" / "1", "pretrain")
    tuned = _run(tmp_path / "finetune_x" / "2", "finetune")
    out = f"output_dir={tmp_path}"
    assert name_latest("evaluate", ["checkpoint=latest", out]) == [f"checkpoint='{tuned}'", out]
    assert capsys.readouterr().out.startswith(f"checkpoint=latest: {tuned} (finetune ")
    assert name_latest("finetune", [out, "checkpoint=latest"])[1] == f"checkpoint='{first}'"
    assert name_latest("finetune", [out, "resume=latest"])[1] == f"resume='{tuned}'"
    assert name_latest("pretrain", [out, "init_from=latest"])[1] == f"init_from='{first}'"
    assert name_latest("pretrain", ["name=latest", "seed=1"]) == ["name=latest", "seed=1"]


def test_a_file_of_that_name_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latest").touch()
    assert name_latest("info", ["checkpoint=latest"]) == ["checkpoint=latest"]


def test_without_runs_one_message(runs: ModuleType, tmp_path: Path) -> None:
    for command in ("evaluate", "info"):
        result = runs.d2v_command(command, "checkpoint=latest", f"output_dir={tmp_path}")
        assert result.status == 1
        assert result.err.startswith("d2v: error: checkpoint=latest: no run with a checkpoint below output_dir=")
    with pytest.raises(ValueError, match="resume=latest: no run of d2v finetune"):
        name_latest("finetune", ["resume=latest", f"output_dir={tmp_path}"])


def test_d2v_runs(runs: ModuleType, tmp_path: Path) -> None:
    assert "no runs of d2v" in runs.d2v_command("runs", f"output_dir={tmp_path}").out
    folder = _run(tmp_path / "x" / "1", "pretrain")
    assert f"{folder}  pretrain" in runs.d2v_command("runs", f"output_dir={tmp_path}").out
    result = runs.d2v_command("runs", f"output_dir={tmp_path / 'no'}")
    assert result.status == 1
    assert "no such folder" in result.err
