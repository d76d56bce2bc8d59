"""A resumed run trains with the configured settings of its optimizer, not with those that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

STEPS = ["trainer.max_steps=4", "schedule.max_steps=8"]


def _groups(runs: ModuleType, run: Path, step: int) -> list[dict[str, object]]:
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in runs.load(run, step)["optimizer_states"][0]["param_groups"]
    ]


@pytest.mark.parametrize("exempt", ["false", "true"])
def test_they_take_effect(runs: ModuleType, tmp_path: Path, exempt: str) -> None:
    more = ["schedule.warmup_steps=0", "schedule.min_factor=0.1", f"optim.exempt_norms_and_biases={exempt}"]
    run = runs.pretrain(tmp_path, *more, *STEPS)
    other = ["optim.lr=1e-5", "optim.weight_decay=0.5", "optim.betas=[0.8,0.9]", "optim.eps=1e-6"]
    other += ["schedule.max_steps=6"]
    runs.pretrain(tmp_path, *more, *other, "trainer.max_steps=6", f"resume={run}")
    for group, decay in zip(_groups(runs, run, 6), [0.5, 0.0], strict=False):
        assert group["initial_lr"] == 1e-5
        assert tuple(group["betas"]) == (0.8, 0.9)  # type: ignore[arg-type]
        assert group["eps"] == 1e-6
        assert group["weight_decay"] == decay
    rates = [float(row["train/lr"]) for row in runs.metrics(run)]
    assert rates[3] > 1e-3  # as the run began
    # the fifth and sixth of six steps: cosine from 1 to 0.1
    assert rates[4] == pytest.approx(1e-5 * (0.1 + 0.9 * 0.25), rel=1e-6)
    assert rates[5] == pytest.approx(1e-5 * (0.1 + 0.9 * 0.0669873), rel=1e-6)
    assert runs.load(run, 6)["lr_schedulers"][0]["base_lrs"] == [1e-5] * len(_groups(runs, run, 6))


def test_muon_resumes_to_the_bit(runs: ModuleType, tmp_path: Path) -> None:
    options = ["optim=muon", "optim.lr=1e-2", *STEPS]
    whole = runs.pretrain(tmp_path / "whole", *options)
    part = runs.pretrain(tmp_path / "part", *options, "trainer.max_steps=2")
    runs.pretrain(tmp_path / "part", *options, f"resume={part}")
    assert not runs.differences(runs.load(whole, 4)["state_dict"], runs.load(part, 4)["state_dict"])
