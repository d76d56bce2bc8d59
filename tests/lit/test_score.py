"""The best checkpoint of fine-tuning through resumes: kept, or said to be lost and looked for anew."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2v.lit.callbacks.checkpoint import CheckpointEvery
from d2v.lit.callbacks.score import ScoreEvery


def best_at(folder: Path, step: int) -> Path:
    """A best.ckpt of that step."""
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "d2v": {"config": {"model": {}, "inputs": {}}},
            "global_step": step,
            "state_dict": {"model.x": torch.zeros(1000)},
        },
        path,
    )
    return path


def start(folder: Path, state: tuple[float | None, int, int], step: int) -> ScoreEvery:
    """What a run that goes on from ``step`` takes up."""
    score = ScoreEvery(folder, 2)
    score.load_state_dict({**dict(zip(("best", "best_step", "waited"), state, strict=True)), "is_due": False})
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(global_step=step, is_global_zero=True, strategy=strategy, callbacks=[score])
    saver = CheckpointEvery(folder)
    saver.on_train_start(trainer, None)  # type: ignore[arg-type]  # unused
    score.on_train_start(trainer, None)  # type: ignore[arg-type]  # unused
    return score


@pytest.mark.parametrize("step", [4, 6])
def test_the_best_of_before_is_kept(tmp_path: Path, step: int) -> None:
    path = best_at(tmp_path, 4)
    before = path.read_bytes()
    score = start(tmp_path, (0.9, 4, 1), step)
    assert (score.best, score.best_step, score.waited) == (0.9, 4, 1)
    assert path.read_bytes() == before
    assert [p.name for p in (tmp_path / "checkpoints").glob("*")] == ["best.ckpt"]


@pytest.mark.parametrize(
    ("there", "state", "step", "said", "left"),
    [
        (None, (0.9, 4, 1), 6, "the best checkpoint, step 4, is lost", []),
        (8, (0.9, 4, 1), 6, "is of step 8, a future this run has left", ["best.ckpt.left"]),
        (8, (None, 0, 0), 6, "is of step 8, a future this run has left", ["best.ckpt.left"]),
        (2, (0.9, 4, 1), 6, "is of step 2, which was not the best", ["best.ckpt.left"]),
    ],
)
def test_another_one_is_said_and_the_comparison_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
    there: int | None, state: Any, step: int, said: str, left: list[str],
) -> None:  # fmt: skip
    if there is not None:
        best_at(tmp_path, there)
    with caplog.at_level(logging.WARNING):
        score = start(tmp_path, state, step)
    assert said in caplog.text
    assert f"comparing anew from step {step} on" in caplog.text
    assert (score.best, score.best_step, score.waited) == (None, 0, 0)
    assert [p.name for p in (tmp_path / "checkpoints").glob("*")] == left


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_one_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    path = best_at(tmp_path, 4)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = next(info for info in archive.infolist() if info.filename.endswith("/data/0")).header_offset + 500
    content[place] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:1000])
    score = start(tmp_path, (0.9, 4, 1), 6)
    assert "the best checkpoint is damaged" in caplog.text
    assert score.best is None
    assert [p.name for p in (tmp_path / "checkpoints").glob("*")] == ["best.ckpt.damaged"]


def test_a_new_run_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tmp_path, (None, 0, 0), 0)
    assert not caplog.text
