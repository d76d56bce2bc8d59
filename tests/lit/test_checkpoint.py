"""Saving: when, how many stay, and which one is fit to go on from."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch

from d2v.interop.doors import load_encoder
from d2v.interop.native import list_checkpoints, newest_intact_checkpoint, resolve_checkpoint
from d2v.lit.callbacks.checkpoint import CheckpointEvery
from d2v.lit.checkpoint_io import AtomicCheckpointIO


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
    with pytest.raises(ValueError, match=rf"callbacks\.checkpoint\.{key}.*(at least 1|-1)"):
        CheckpointEvery(tmp_path, **options)  # type: ignore[arg-type]


def _save(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.ckpt"
    torch.save({"state_dict": {"w": torch.full((2000,), float(step))}, "global_step": step}, path)
    return path


def test_newest_first(tmp_path: Path) -> None:
    paths = [_save(tmp_path, step) for step in (2, 10, 9)]
    (tmp_path / "step-00000099.ckpt.part").write_text("")
    assert list_checkpoints(tmp_path) == [paths[1], paths[2], paths[0]]
    assert newest_intact_checkpoint(tmp_path) == paths[1]


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_intact_checkpoint(tmp_path) is None
    assert newest_intact_checkpoint(tmp_path / "missing") is None
    (tmp_path / "step-00000001.ckpt").write_bytes(b"")
    assert newest_intact_checkpoint(tmp_path) is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float) -> None:
    intact, damaged = _save(tmp_path, 1), _save(tmp_path, 2)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    with caplog.at_level(logging.WARNING):
        assert newest_intact_checkpoint(tmp_path) == intact
    assert damaged.name in caplog.text


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    intact, damaged = _save(tmp_path, 1), _save(tmp_path, 2)
    content = damaged.read_bytes()
    wanted = torch.load(damaged, weights_only=True)
    noticed = 0
    positions = range(0, len(content), len(content) // 60)
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        damaged.write_bytes(flipped)
        if newest_intact_checkpoint(tmp_path) == intact:
            noticed += 1
            continue
        loaded = torch.load(damaged, weights_only=True)
        assert loaded["global_step"] == 2
        assert torch.equal(loaded["state_dict"]["w"], wanted["state_dict"]["w"])
    assert noticed > len(positions) / 2


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
    assert synced == [(path.stat().st_size, False)]  # all of it, and before


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
