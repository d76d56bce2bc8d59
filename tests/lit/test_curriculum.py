"""A curriculum: input values first, the teacher's targets later, from the configuration to the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lit.tiny_runs import PLAIN, TINY, Result, checkpoints, d2v_command, differences, load, metrics

CURRICULUM = [
    *TINY[len(PLAIN) :],  # the default experiment's curriculum stays
    *("curriculum.start_fraction=0.5", "curriculum.end_fraction=0.75", "curriculum.end_share=1"),
    "trainer.max_steps=8",
    *("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=20", "trainer.log_every_n_steps=1"),
]


def _pretrain(folder: Path, *overrides: str) -> Result:
    return d2v_command("pretrain", f"hydra.run.dir={folder}", *CURRICULUM, *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curriculum") / "run"
    result = _pretrain(folder)
    assert result.status in (0, None), result.err
    return folder


def _part(run: Path, step: int, network: str) -> dict[str, torch.Tensor]:
    state = load(run, step)["state_dict"]
    start = f"model.{network}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def test_the_teacher_waits_and_then_starts_as_the_student(run: Path) -> None:
    first, waiting = _part(run, 1, "teacher"), _part(run, 4, "teacher")
    assert differences(first, waiting) == []
    assert differences(_part(run, 1, "student"), _part(run, 4, "student")) != []
    assert differences(waiting, _part(run, 6, "teacher")) != []


def test_the_terms_of_the_loss_follow_the_curriculum(run: Path) -> None:
    rows = metrics(run)
    latent = [float(row["train/loss_regression"]) for row in rows]
    inputs = [float(row["train/loss_reconstruction"]) for row in rows]
    assert [value == 0 for value in latent] == [True] * 5 + [False] * 3  # the ramp begins at 0
    assert [value == 0 for value in inputs] == [False] * 6 + [True] * 2


def test_spread_of_targets_is_logged_once_there_are_targets(run: Path) -> None:
    assert [bool(row["train/target_std"]) for row in metrics(run)] == [False] * 5 + [True] * 3


@pytest.mark.parametrize("step", [3, 4, 5, 6])
def test_a_resume_is_exact_in_every_phase(run: Path, step: int, tmp_path: Path) -> None:
    resumed = tmp_path / "run"
    result = _pretrain(resumed, f"resume={run / 'checkpoints' / f'step-{step:08d}.ckpt'}")
    assert result.status in (0, None), result.err
    assert checkpoints(resumed)[-1] == checkpoints(run)[-1]
    whole, again = (load(folder, 8)["state_dict"] for folder in (run, resumed))
    assert differences(whole, again) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.reconstruction=false"], "model.reconstruction=true"),
        (["~curriculum"], "add curriculum=reconstruction_first"),
        (
            ["curriculum.start_fraction=0.5", "curriculum.end_fraction=0.2"],
            "curriculum.end_fraction=0.2: must be at least",
        ),
        (["model=mae/image_tiny"], "leave out curriculum"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    result = d2v_command("pretrain", f"output_dir={tmp_path}", *overrides)
    assert result.status == 1
    assert words in result.err
    assert "Traceback" not in result.err
