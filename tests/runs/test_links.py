"""Links that lead out of a run's folder are refused by name; links within it, and to checkpoints, are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v.runs.links import LeadsElsewhere, check_links


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / "checkpoints" / "step-00000001.ckpt").touch()
    (folder / "checkpoints" / "best.ckpt").symlink_to("step-00000001.ckpt")
    (folder / "latest").symlink_to("checkpoints")
    return folder


def test_links_within_the_folder_are_fine(run: Path, tmp_path: Path) -> None:
    check_links(run)
    (tmp_path / "link").symlink_to(run)
    check_links(tmp_path / "link")
    check_links(tmp_path / "missing")


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", ".hydra/overrides.yaml", "pretrain.log", "checkpoints/.step-2.ckpt.part",
             "submission", "checkpoints/deep"],
)  # fmt: skip
@pytest.mark.parametrize("exists", [True, False])
def test_links_out_of_it_are_refused(run: Path, tmp_path: Path, name: str, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        target.touch()
    (run / name).symlink_to(target)
    with pytest.raises(LeadsElsewhere, match=rf"{name} is a link to {target}.*hydra\.run\.dir=DIR"):
        check_links(run)


@pytest.mark.parametrize("name", ["checkpoints", ".hydra"])
def test_a_folder_that_is_a_link_out_of_it_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    (run / "latest").unlink()
    (run / name).rename(tmp_path / "moved")
    (run / name).symlink_to("../moved")
    with pytest.raises(LeadsElsewhere, match=rf"{name} is a link to \.\./moved"):
        check_links(run)


def test_folders_of_a_folder_that_is_no_run_are_left_alone(tmp_path: Path) -> None:
    """Such as a home folder, of which nothing but the top level would be written to."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "link").symlink_to("/")
    check_links(tmp_path / "a")
    (tmp_path / "a" / "evaluate").symlink_to(tmp_path)
    with pytest.raises(LeadsElsewhere):
        check_links(tmp_path / "a")


def test_checkpoints_that_are_links_to_files_are_read_and_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.ckpt").touch()
    (run / "checkpoints" / "step-00000002.ckpt").symlink_to(tmp_path / "elsewhere.ckpt")
    check_links(run)
    (run / "checkpoints" / "step-00000003.ckpt").symlink_to(tmp_path)
    with pytest.raises(LeadsElsewhere):
        check_links(run)


def test_logs_of_wandb_are_its_own(run: Path, tmp_path: Path) -> None:
    """wandb links to a log below the home folder, and opens it for the start that made it alone."""
    logs = run / "wandb" / "offline-run-20200101_000000-abc" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "elsewhere.log")
    check_links(run)
    (logs / "folder.log").symlink_to(tmp_path)
    with pytest.raises(LeadsElsewhere, match=r"folder\.log is a link"):
        check_links(run)
