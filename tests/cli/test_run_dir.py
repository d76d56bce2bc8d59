"""Folders of runs: nobody shares a new one, the right one goes on, and nothing is written outside of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from d2v.cli.run_dir import claim, claim_given, name_sweep, new_folder, run_dir
from d2v.runs import lock
from d2v.runs.links import LeadsElsewhere
from d2v.runs.lock import InUse, unlock_folders
from d2v.runs.record import write_run_record

HOLD = "import sys, time; from d2v.runs.lock import lock_folder; lock_folder(sys.argv[1]); print(1, flush=True); "


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    unlock_folders()


def make_run(folder: Path, overrides: str = "- seed=1\n") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001.ckpt").touch()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    write_run_record(folder / "run.json", {})
    return folder


def test_whoever_starts_in_the_same_second_gets_a_folder_of_his_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "new"), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(\.\d+)?", folder.name) for folder in folders)


def test_printing_a_configuration_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--cfg", "hydra", "--resolve"])
    assert Path(run_dir(str(tmp_path / "o"), "name", None, [])).parent == tmp_path / "o" / "name"
    assert not (tmp_path / "o").exists()


def test_a_run_is_known_by_the_words_of_every_start_that_says_as_much_as_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run" / "2020-01-01_00-00-00", "- seed=1\n- trainer.max_steps=3\n")
    for words in (
        ["++seed=1", "++trainer.max_steps=6", f"resume={run}", "hydra.output_subdir=null"],
        [f"resume={run}"],
    ):
        write_run_record(run / "run.json", {"command": ["d2v", "pretrain", *words]})
    for words in (["seed=1", "trainer.max_steps=3"], ["trainer.max_steps=6", "seed=1"]):
        assert run_dir(str(tmp_path), None, "auto", words) == str(run)
    for words in ([], ["seed=1"], ["seed=2", "trainer.max_steps=6"], ["seed=1", "trainer.max_steps=7"]):
        assert run_dir(str(tmp_path), None, "auto", words) != str(run)


@pytest.mark.parametrize("content", ["- [torn", "", "a: 1", "- 1", "seed=1", "\x00", "- !!python/object:os.system {}"])
def test_damaged_overrides_of_any_run_are_named_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    mine = make_run(tmp_path / "run" / "2020-01-01_00-00-00")
    damaged = make_run(tmp_path / "run" / "2099-01-01_00-00-00", content)
    assert run_dir(str(tmp_path), None, "auto", ["seed=1"]) == str(mine)
    assert f"{damaged / '.hydra' / 'overrides.yaml'} cannot be read" in caplog.text
    assert f"resume={damaged} goes on with it" in caplog.text


def test_overrides_that_may_not_be_read_are_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = make_run(tmp_path / "run" / "2020-01-01_00-00-00")
    other = make_run(tmp_path / "run" / "2099-01-01_00-00-00") / ".hydra" / "overrides.yaml"
    other.unlink()
    other.mkdir()  # root may read any file
    assert run_dir(str(tmp_path), None, "auto", ["seed=1"]) == str(mine)
    assert str(other) in caplog.text


@pytest.mark.parametrize("name", [".hydra", ".hydra/config.yaml", ".hydra/hydra.yaml"])
def test_what_stands_where_hydra_writes_is_moved_aside(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    if name == ".hydra":
        path.write_text("no folder")
    else:
        path.mkdir(parents=True)
    claim(tmp_path)
    assert f"{path} is damaged" in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").exists()


def test_auto_takes_the_run_begun_last_whatever_its_name_says(tmp_path: Path) -> None:
    make_run(tmp_path / "run" / "2099-01-01_00-00-00")
    last = make_run(tmp_path / "run" / "2026-01-01_00-00-00")
    assert run_dir(str(tmp_path), None, "auto", ["seed=1"]) == str(last)


@pytest.mark.parametrize("how", ["auto", "folder", "checkpoint", "hydra.run.dir"])
def test_a_run_that_is_being_trained_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.5)
    run = make_run(tmp_path / "run" / "a")
    given = {"auto": "auto", "folder": str(run), "checkpoint": str(run / "checkpoints" / "step-00000001.ckpt")}

    def ask() -> None:
        if how == "hydra.run.dir":
            claim_given(["seed=1", f"hydra.run.dir='{run}'"])
        else:
            run_dir(str(tmp_path), None, given[how], ["seed=1"])

    command = [sys.executable, "-c", f"{HOLD} time.sleep(60)", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with pytest.raises(InUse, match=f"{run}: process {process.pid} on "):
                ask()
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["checkpoints", "config.yaml", ".hydra/overrides.yaml"])
@pytest.mark.parametrize("how", ["resume", "hydra.run.dir"])
def test_links_that_lead_elsewhere_are_refused_before_anything_is_written(tmp_path: Path, name: str, how: str) -> None:
    run = make_run(tmp_path / "run" / "a")
    moved = tmp_path / "moved"
    (run / name).rename(moved) if (run / name).exists() else moved.touch()
    (run / name).symlink_to(moved)

    def ask() -> None:
        if how == "resume":
            run_dir(str(tmp_path), None, str(run), ["seed=1"])
        else:
            claim_given([f"+hydra.run.dir={run}"])

    with pytest.raises(LeadsElsewhere, match=f"{run / name} is a link to {moved}"):
        ask()


def test_a_multirun_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"output_dir='{tmp_path}/a b'"
    found = [name_sweep(["-m", "seed=1,2", out]) for _ in range(3)]
    folders = sorted((tmp_path / "a b" / "multirun").iterdir())
    assert [f"hydra.sweep.dir='{folder}'" for folder in folders] == sorted(o for (o,) in found)
    assert len(folders) == 3
    assert name_sweep(["seed=1", out]) == []
    assert name_sweep(["-m", out, f"hydra.sweep.dir={tmp_path}"]) == []
    monkeypatch.chdir(tmp_path)
    for word in ("--multirun", "launcher=slurm", "hydra.mode=MULTIRUN"):
        (override,) = name_sweep([word])
        assert override.startswith("hydra.sweep.dir='outputs/multirun/2")


def test_the_command_says_so_in_one_message(runs: ModuleType, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").symlink_to(tmp_path / "precious")
    for given in (f"resume={run}", f"hydra.run.dir={run}"):
        result = runs.d2v_command("pretrain", given, *runs.TINY)
        assert result.status == 1
        assert result.err.startswith(f"d2v: error: {run / 'metrics.csv'} is a link to {tmp_path / 'precious'}")
        assert "Traceback" not in result.err
    assert not (tmp_path / "precious").exists()
