"""The best checkpoint of fine-tuning through resumes: kept, or said to be lost and looked for anew."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2v.lit.callbacks import score as score_module
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


def compare(
    folder: Path,
    values: list[float],
    monkeypatch: pytest.MonkeyPatch,
    *,
    higher: bool = True,
    patience: int | None = None,
) -> tuple[ScoreEvery, list[int], int | None]:
    """The callback after these scores, the steps that it saved, and the step at which it stopped."""
    saved: list[int] = []
    monkeypatch.setattr(score_module, "save", lambda trainer, path, weights_only: saved.append(trainer.global_step))
    task = SimpleNamespace(metric="m", higher_is_better=higher)
    callback = ScoreEvery(folder, 1, patience)
    for step, value in enumerate(values, 1):
        trainer: Any = SimpleNamespace(global_step=step, should_stop=False)
        callback._compare(trainer, SimpleNamespace(task=task), {"other": -value, "m": value})  # type: ignore[arg-type]
        if trainer.should_stop:
            return callback, saved, step
    return callback, saved, None


@pytest.mark.parametrize(
    ("values", "higher", "best"),
    [
        ([0.1, 0.3, 0.2], True, (0.3, 2)),
        ([0.3, 0.1, 0.2], False, (0.1, 2)),
        ([0.0, 0.0, 0.0], True, (0.0, 3)),  # one class is predicted: what has learned longest
        ([1.0, 1.0, 1.2], False, (1.0, 2)),
        ([0.0, 0.4, 0.4, 0.3], True, (0.4, 3)),
    ],
)
def test_of_equal_scores_the_later_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], higher: bool, best: tuple[float, int]
) -> None:
    callback, saved, _ = compare(tmp_path, values, monkeypatch, higher=higher)
    assert (callback.best, callback.best_step) == best
    assert saved[-1] == best[1]


def test_an_equal_score_is_none_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(tmp_path, [0.1, 0.3, 0.3, 0.3, 0.5], monkeypatch, patience=2)[2] == 4
    assert compare(tmp_path, [0.1, 0.3, 0.3, 0.4, 0.4], monkeypatch, patience=2)[2] is None


def test_what_cannot_be_saved_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, _, _ = compare(tmp_path, [0.1], monkeypatch)
    monkeypatch.setattr(score_module, "save", lambda *args, **options: OSError("full"))
    trainer: Any = SimpleNamespace(global_step=2, should_stop=False)
    module: Any = SimpleNamespace(task=SimpleNamespace(metric="m", higher_is_better=True))
    callback._compare(trainer, module, {"m": 0.5})
    assert (callback.best, callback.best_step, callback.waited) == (0.1, 1, 0)
