"""Training steps under Lightning: seeds, and in fine-tuning the average of the weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from d2v.lit.finetune import FinetuneModule
from d2v.lit.module import TrainingModule, seed_generators


def average_after(steps: range, ema_decay: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """The average of a weight that is 1 after step 1, 2 after step 2 and so on, and the same from the formula.

    Args:
        steps: optimizer steps that are taken; before the first, weight and average are 0.
        ema_decay: of the module.
        monkeypatch: replaces the optimizer's own step.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def optimizer_step(self: Any, *args: Any) -> None:
        with torch.no_grad():
            model.weight += 1

    monkeypatch.setattr(TrainingModule, "optimizer_step", optimizer_step)
    module = FinetuneModule(model, None, lambda named: None, lambda step: 1.0, ema_decay=ema_decay)  # type: ignore[arg-type, return-value]
    expected = 0.0
    for value, step in enumerate(steps, start=1):
        module.trainer = SimpleNamespace(global_step=step)  # type: ignore[assignment]
        module.optimizer_step(0, step - 1, None)  # type: ignore[arg-type]
        decay = min(ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    return module.scored.weight.item(), expected  # type: ignore[union-attr, operator]


def test_a_young_average_forgets_its_start_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 1 moves it by 9/11, as in TensorFlow's averages, though the decay is 0.999."""
    found, expected = average_after(range(1, 2), 0.999, monkeypatch)
    assert found == pytest.approx(1 - 2 / 11)
    assert found == pytest.approx(expected)
    found, expected = average_after(range(1, 30), 0.999, monkeypatch)
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_old_average_moves_by_its_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 80 on, (1 + step) / (10 + step) is above 0.9."""
    found, expected = average_after(range(90, 92), 0.9, monkeypatch)
    assert found == pytest.approx(0.9 * 0.1 + 0.1 * 2)
    assert found == pytest.approx(expected)


def test_every_micro_batch_of_every_step_and_rank_has_a_seed_of_its_own() -> None:
    def seed(run_seed: int = 0, step: int = 0, micro_batch: int = 0, rank: int = 0) -> int:
        module = TrainingModule(nn.Linear(1, 1), lambda named: None, lambda step: 1.0, run_seed)  # type: ignore[arg-type, return-value]
        trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=4, global_rank=rank)
        module.trainer = trainer  # type: ignore[assignment]
        module._seed_step(4 * step + micro_batch)
        return torch.initial_seed()

    assert seed() == seed()
    assert len({seed(), seed(run_seed=1), seed(step=1), seed(micro_batch=1), seed(rank=1)}) == 5
    assert seed(step=1, micro_batch=0) != seed(step=0, micro_batch=1)


def test_a_seeded_cpu_draws_what_torch_would() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_generators(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_device_of_the_model_is_seeded_and_no_other(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[tuple[str, int]] = []
    for name in ("cuda", "mps"):
        part = getattr(torch, name)
        monkeypatch.setattr(part, "manual_seed", lambda seed, name=name: seeded.append((name, seed)))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    seed_generators(7, torch.device(device))
    assert seeded == [(device, 7)]
    assert torch.initial_seed() == 7
