"""Saving: when, how many stay, and which one is fit to go on from."""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import lightning as L
import pytest
import torch

from d2v.interop.build import build
from d2v.interop.checkpoints import load_encoder
from d2v.interop.native import resolve_checkpoint
from d2v.lit.checkpoint_io import AtomicCheckpointIO, make_room
from d2v.runs.checkpoints import list_checkpoints


def _names(*steps: int) -> list[str]:
    return [f"step-{step:08d}.ckpt" for step in steps]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep=-1"], (2, 4, 6, 7)),
        (["callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep=2"], (6, 7)),
        (["callbacks.checkpoint.every_n_steps=7", "callbacks.checkpoint.keep=1"], (7,)),
        (["callbacks.checkpoint.every_n_steps=100"], (7,)),  # the end is always saved
        (["callbacks.checkpoint.every_n_steps=100", "callbacks.checkpoint.every_n_minutes=1e-9"], tuple(range(1, 8))),
    ],
)
def test_when_and_how_many(runs: ModuleType, tmp_path: Path, overrides: list[str], steps: tuple[int, ...]) -> None:
    run = runs.pretrain(tmp_path, "trainer.max_steps=7", "micro_batch_size=2", *overrides)
    assert runs.checkpoints(run) == _names(*steps)
    for step in steps:
        assert runs.load(run, step)["global_step"] == step


def test_a_checkpoint_holds_the_teacher_of_its_step(runs: ModuleType, tmp_path: Path) -> None:
    """Saved after the teacher's update: the same as in a run that ends there."""
    long = runs.pretrain(tmp_path / "long", "callbacks.checkpoint.every_n_steps=2", "schedule.max_steps=9")
    short = runs.pretrain(tmp_path / "short", "trainer.max_steps=2", "schedule.max_steps=9")
    a, b = runs.load(long, 2), runs.load(short, 2)
    assert any("teacher" in name for name in a["state_dict"])
    assert not runs.differences(a["state_dict"], b["state_dict"])
    assert not runs.differences(a["optimizer_states"], b["optimizer_states"])


@pytest.mark.parametrize(
    ("options", "key"),
    [({"every_n_steps": 0}, "every_n_steps=0"), ({"keep": 0}, "keep=0"), ({"keep": -2}, "keep=-2")],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, int], key: str) -> None:
    node = {"_target_": "d2v.lit.callbacks.checkpoint.CheckpointEvery", **options}
    with pytest.raises(ValueError, match=rf"callbacks\.checkpoint\.{key}.*(from 1|-1)"):
        build(node, {"run_dir": tmp_path}, key="callbacks.checkpoint")


def _save(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.ckpt"
    torch.save({"state_dict": {"w": torch.full((2000,), float(step))}, "global_step": step}, path)
    return path


def _save(folder: Path, step: int) -> Path:
    path = folder / _names(step)[0]
    torch.save({"state_dict": {"w": torch.full((20,), float(step))}, "global_step": step}, path)
    return path


def test_readers_pass_over_a_damaged_newest_checkpoint_too(runs: ModuleType, tmp_path: Path) -> None:
    """``d2v evaluate checkpoint=RUN``, while the run is writing or after it was killed."""
    run = runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=2")
    intact, newest = (run / "checkpoints" / name for name in _names(2, 4))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert resolve_checkpoint(run) == intact
    load_encoder(run)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a machine that loses power could keep the name and lose the content."""
    path, synced = tmp_path / "new" / "step-00000001.ckpt", []
    fsync = os.fsync

    def note(number: int) -> None:
        fsync(number)
        synced.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1000)}, path)
    assert synced[0] == (path.stat().st_size, False)  # all of it, and before
    assert [there for _, there in synced[1:]] == [True]  # then the folder that holds the name


def test_a_clock_that_jumps_changes_nothing(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it is time to save, nor what is measured, nor the time left."""
    jumps = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 + 1e6 * (-1) ** next(jumps))
    options = ["callbacks.checkpoint.every_n_steps=100", "callbacks.checkpoint.every_n_minutes=60"]
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, *options)
    assert result.status in (0, None), result.err
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert runs.checkpoints(run) == _names(4)
    for row in runs.metrics(run):
        assert 0.01 < float(row["perf/samples_per_s"]) < 1e6
        assert 0 <= float(row["perf/data_wait_fraction"]) <= 1
    left = re.findall(r"(-?\d+):\d\d:\d\d left", result.err)
    assert left == ["0"] * 4


def test_metrics_of_a_step_are_on_disk_before_its_checkpoint(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed right after saving step 2 goes on from step 3: nobody would log step 2 again."""
    seen: dict[int, list[str]] = {}
    save = L.Trainer.save_checkpoint

    def watch(trainer: L.Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
        save(trainer, path, *args, **kwargs)
        file = path.parents[1] / "metrics.csv"
        seen[trainer.global_step] = [row["step"] for row in runs.metrics(path.parents[1])] if file.exists() else []

    monkeypatch.setattr(L.Trainer, "save_checkpoint", watch)
    runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=2")
    assert seen == {2: ["1", "2"], 4: ["1", "2", "3", "4"]}


def test_a_full_disk_lets_go_of_the_oldest_that_is_superseded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    paths = [_save(tmp_path, step) for step in (1, 2, 3, 4)]
    assert not make_room(OSError(errno.EIO, "broken"), tmp_path)
    assert make_room(full, tmp_path, keep=[paths[0]])
    assert list_checkpoints(tmp_path) == [paths[3], paths[2], paths[0]]
    assert f"{paths[1]} is deleted to make room, {paths[3].name} is newer and intact" in caplog.text
    paths[3].write_bytes(b"half")
    assert make_room(full, tmp_path)
    assert list_checkpoints(tmp_path) == [paths[3], paths[2]]
    assert not make_room(full, tmp_path)  # the only intact one stays
    paths[2].write_bytes(b"half")
    assert not make_room(full, tmp_path)
    assert list_checkpoints(tmp_path) == [paths[3], paths[2]]


@pytest.mark.parametrize("keep", [2, 3])
def test_a_disk_with_room_for_as_many_as_are_kept_is_large_enough(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """One that holds ``keep`` checkpoints has no room for one more beside them."""
    save = torch.save

    def limited(content: object, file: BinaryIO, *args: object, **kwargs: object) -> None:
        if len(list(Path(file.name).parent.glob("step-*.ckpt"))) >= keep:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", limited)
    run = runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=1", f"callbacks.checkpoint.keep={keep}")
    assert runs.checkpoints(run) == _names(*range(5 - keep, 5))
    assert "is deleted to make room" in (run / "pretrain.log").read_text()
