"""Steps without a finite gradient: skipped, counted, named, and too many of them end a run that can be resumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from d2v.interop.build import build
from d2v.models.data2vec2 import Data2Vec2
from d2v.types import Batch, LossOutput

FORWARD = Data2Vec2.forward


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """The loss of these steps (the first is 1) is not a number."""
    steps = itertools.count(1)

    def forward(self: Data2Vec2, batch: Batch) -> LossOutput:
        out = FORWARD(self, batch)
        factor = float("nan") if is_bad(next(steps)) else 1.0
        watched = {**out.watched, "features": out.watched["features"] * factor}
        return replace(out, loss_sum=out.loss_sum * factor, watched=watched)

    monkeypatch.setattr(Data2Vec2, "forward", forward)


def test_a_bad_step_changes_no_weight(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda step: step == 3)
    run = runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=1", "callbacks.finite.check_every_n_steps=1")
    before, after, end = (runs.load(run, step) for step in (2, 3, 4))
    changed = runs.differences(before["state_dict"], after["state_dict"])
    assert all(".model.teacher." in name for name in changed)
    assert not runs.differences(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"])
    assert runs.differences(after["state_dict"], end["state_dict"])
    assert all(value.isfinite().all() for value in end["state_dict"].values())
    (line,) = (run / "skipped_steps_0.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3
    assert len(json.loads(line)["sample_ids"]) == 4
    assert [row["train/skipped_steps"] for row in runs.metrics(run)] == ["", "", "1.0", "1.0"]


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_of_bad_steps_ends_and_is_resumed(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    common = ["trainer.max_steps=6", "callbacks.checkpoint.every_n_steps=2", "callbacks.finite.max_in_a_row=2",
              f"callbacks.finite.check_every_n_steps={every}", "callbacks.health.min_spread=null"]  # fmt: skip
    whole = runs.pretrain(tmp_path / "whole", *common)
    command = ["pretrain", f"output_dir={tmp_path / 'cut'}", *runs.TINY, *common]
    with monkeypatch.context() as context:
        poison(context, lambda step: step >= 3)
        result = runs.d2v_command(*command)
    assert result.status == 1
    assert "the gradient was not finite in the last 2 steps, up to step 4" in result.err
    assert "resume=auto" in result.err
    (run,) = (tmp_path / "cut" / "image_tiny").iterdir()
    assert len((run / "skipped_steps_0.jsonl").read_text().splitlines()) == 2
    assert runs.checkpoints(run) == ["step-00000002.ckpt"]
    assert runs.d2v_command(*command, "resume=auto").status in (0, None)
    a, b = runs.load(whole, 6), runs.load(run, 6)
    assert not runs.differences(a["state_dict"], b["state_dict"])
    assert not runs.differences(a["optimizer_states"], b["optimizer_states"])


def test_the_guard_does_not_take_a_bad_step_for_a_collapse(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step == 2)
    run = runs.pretrain(tmp_path, "trainer.max_steps=8", "callbacks.health.min_spread=0.05")
    assert all(value.isfinite().all() for value in torch.utils._pytree.tree_leaves(runs.load(run, 8)["state_dict"]))


def test_only_bad_steps_in_a_row_end_a_run(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is counted, too, though it comes after the last look."""
    poison(monkeypatch, lambda step: step in (2, 4, 7))
    limits = ["callbacks.finite.max_in_a_row=2", "callbacks.finite.check_every_n_steps=3"]
    run = runs.pretrain(tmp_path, "trainer.max_steps=7", *limits, "callbacks.health.min_spread=null")
    lines = [json.loads(line)["step"] for line in (run / "skipped_steps_0.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 7]


def test_a_resumed_run_goes_on_counting(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping and resuming does not let a run of bad steps go on for ever."""
    common = ["callbacks.finite.check_every_n_steps=1", "callbacks.finite.max_in_a_row=3",
              "callbacks.health.min_spread=null", "schedule.max_steps=8"]  # fmt: skip
    with monkeypatch.context() as context:
        poison(context, lambda step: step >= 3)
        run = runs.pretrain(tmp_path, *common, "trainer.max_steps=4")
    with monkeypatch.context() as context:
        poison(context, lambda step: True)
        result = runs.d2v_command("pretrain", *runs.TINY, *common, "trainer.max_steps=8", f"resume={run}")
    assert result.status == 1
    assert "the gradient was not finite in the last 3 steps, up to step 5" in result.err


@pytest.mark.parametrize("name", ["check_every_n_steps", "max_in_a_row"])
def test_numbers_out_of_range(tmp_path: Path, name: str) -> None:
    node = {"_target_": "d2v.lit.callbacks.finite.SkippedSteps", name: 0}
    with pytest.raises(ValueError, match=rf"callbacks\.finite\.{name}=0: give a whole number from 1"):
        build(node, {"run_dir": tmp_path}, key="callbacks.finite")
