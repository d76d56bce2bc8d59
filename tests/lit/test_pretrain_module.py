"""One optimizer step and what happens around it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch

from d2v.lit.loggers import CSVLogger
from d2v.objective.schedules import ema_decay, warmup_cosine


class Watcher(L.Callback):
    """Notes the students after each optimizer step, gradient norms before and after clipping, learning rates."""

    def __init__(self) -> None:
        self.students: list[dict[str, torch.Tensor]] = []
        self.norms: list[float] = []
        self.clipped_norms: list[float] = []
        self.lrs: list[float] = []
        self.teacher_modes: list[bool] = []
        self.micro_batches = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.norms.append(_norm(pl_module))
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batches += 1
        self.teacher_modes.append(any(m.training for m in pl_module.model.teacher.modules()))
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.students.append({k: p.detach().clone() for k, p in pl_module.model.student.named_parameters()})
            self.clipped_norms.append(_norm(pl_module))


def _norm(module: Any) -> float:
    grads = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
    return float(torch.cat(grads).norm())


def _weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.module.model.named_parameters())


def test_accumulation_is_exact(runs: ModuleType) -> None:
    """1 x 8 == 4 x 2: weights, teacher and gradients after three steps."""
    common = ("global_batch_size=8", "trainer.max_steps=3", "model.decoders.image.mask_noise_std=0", "optim.eps=1e-4")
    whole = runs.fit(*common)
    for micro_batch_size in (2, 4):
        watcher = Watcher()
        split = runs.fit(*common, f"micro_batch_size={micro_batch_size}", callbacks=[watcher])
        assert watcher.micro_batches == 3 * 8 // micro_batch_size
        assert split.trainer.global_step == 3
        for (name, a), (other, b) in zip(_weights(whole).items(), _weights(split).items(), strict=True):
            assert name == other
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
            if a.grad is not None:
                assert b.grad is not None
                torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_logged_loss_is_that_of_the_global_batch(runs: ModuleType, tmp_path: Path) -> None:
    """However a step is split into micro-batches, it logs the same loss, terms and gradient norm."""
    rows = []
    for micro_batch_size in ("null", "2"):
        folder = tmp_path / micro_batch_size
        runs.fit(
            "global_batch_size=8", "trainer.max_steps=2", "model.decoders.image.mask_noise_std=0", "optim.eps=1e-4",
            f"micro_batch_size={micro_batch_size}", loggers=[CSVLogger(folder)],
        )  # fmt: skip
        rows.append(runs.metrics(folder))
    for whole, split in zip(*rows, strict=True):
        for key in ("train/grad_norm", "train/loss"):
            assert float(split[key]) == pytest.approx(float(whole[key]), rel=1e-4), key


@pytest.mark.parametrize("micro_batch_size", ["null", "2"])
def test_teacher_is_the_average_of_the_students_after_each_step(runs: ModuleType, micro_batch_size: str) -> None:
    watcher = Watcher()
    result = runs.fit("trainer.max_steps=3", f"micro_batch_size={micro_batch_size}", callbacks=[watcher])
    # every student starts as the teacher does: rebuild the start from an untrained fit
    start = runs.fit(
        "trainer.max_steps=1", "optim.lr=0", "optim.weight_decay=0", "ema.decay_start=1", "ema.decay_end=1"
    )
    average = {k: p.detach().clone().double() for k, p in start.module.model.student.named_parameters()}
    assert len(watcher.students) == 3
    for step, student in enumerate(watcher.students, start=1):
        decay = ema_decay(step, 0.9, 0.99, 5)
        average = {k: decay * average[k] + (1 - decay) * student[k].double() for k in average}
    for name, parameter in result.module.model.teacher.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.double(), average[name], atol=1e-6, rtol=1e-6)
    changed = any(not torch.equal(watcher.students[0][k], watcher.students[-1][k]) for k in average)
    assert changed
    assert not any(watcher.teacher_modes)


def test_teacher_is_updated_once_an_optimizer_step(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from d2v.models.data2vec2 import Data2Vec2

    decays: list[float] = []
    monkeypatch.setattr(Data2Vec2, "update_teacher", lambda self, decay: decays.append(decay))
    runs.fit("trainer.max_steps=3", "micro_batch_size=1")
    assert decays == [pytest.approx(ema_decay(step, 0.9, 0.99, 5)) for step in (1, 2, 3)]


def test_every_micro_batch_draws_noise_of_its_own(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same again in another run with the same seed."""
    from d2v.models.data2vec2 import Data2Vec2

    seeds: list[int] = []
    forward = Data2Vec2.forward

    def watched(self: Data2Vec2, batch: Any) -> Any:
        seeds.append(torch.initial_seed())
        return forward(self, batch)

    monkeypatch.setattr(Data2Vec2, "forward", watched)
    for overrides in (["seed=0"], ["seed=0"], ["seed=1"]):
        runs.fit("trainer.max_steps=2", "micro_batch_size=2", *overrides)
    first, again, other = seeds[:4], seeds[4:8], seeds[8:]
    assert first == again
    assert len({*first, *other}) == 8


@pytest.mark.parametrize("micro_batch_size", ["null", "2"])
def test_gradients_are_clipped_and_logged_unclipped(runs: ModuleType, tmp_path: Path, micro_batch_size: str) -> None:
    watcher = Watcher()
    runs.fit(
        "trainer.max_steps=3", f"micro_batch_size={micro_batch_size}", "trainer.gradient_clip_val=0.01",
        callbacks=[watcher], loggers=[CSVLogger(tmp_path)],
    )  # fmt: skip
    logged = [float(row["train/grad_norm"]) for row in runs.metrics(tmp_path)]
    assert logged == [pytest.approx(norm, rel=1e-4) for norm in watcher.norms]
    assert min(watcher.norms) > 0.1
    assert watcher.clipped_norms == [pytest.approx(0.01, rel=1e-3)] * 3


def test_without_clipping_gradients_stay(runs: ModuleType, tmp_path: Path) -> None:
    watcher = Watcher()
    runs.fit("trainer.gradient_clip_val=null", callbacks=[watcher], loggers=[CSVLogger(tmp_path)])
    assert watcher.clipped_norms == watcher.norms
    assert [float(row["train/grad_norm"]) for row in runs.metrics(tmp_path)] == [
        pytest.approx(norm, rel=1e-4) for norm in watcher.norms
    ]


def test_learning_rate_and_decay_follow_their_schedules(runs: ModuleType, tmp_path: Path) -> None:
    watcher = Watcher()
    runs.fit(
        "trainer.max_steps=6", "schedule.warmup_steps=3", "micro_batch_size=2",
        callbacks=[watcher], loggers=[CSVLogger(tmp_path)],
    )  # fmt: skip
    expected = [0.01 * warmup_cosine(step, 3, 6) for step in range(6)]
    assert watcher.lrs == [pytest.approx(lr) for lr in expected]
    rows = runs.metrics(tmp_path)
    assert [float(row["train/lr"]) for row in rows] == [pytest.approx(lr) for lr in expected]
    decays = [ema_decay(step, 0.9, 0.99, 5) for step in range(1, 7)]
    assert [float(row["train/ema_decay"]) for row in rows] == [pytest.approx(decay) for decay in decays]


def test_what_is_logged(runs: ModuleType, tmp_path: Path) -> None:
    (run,) = [runs.pretrain(tmp_path, "trainer.max_steps=2")]
    rows = runs.metrics(run)
    promised = {
        "train/loss", "train/loss_regression", "train/loss_cls", "train/masked_fraction", "train/ema_decay",
        "train/target_std", "train/pred_std", "train/effective_rank", "train/grad_norm", "train/lr",
        "perf/samples_per_s", "perf/data_wait_fraction",
    }  # fmt: skip
    for row in rows:
        assert promised <= {key for key, value in row.items() if value != ""}
        assert float(row["train/masked_fraction"]) == pytest.approx(13 / 16)
        assert float(row["train/loss"]) == pytest.approx(
            float(row["train/loss_regression"]) + float(row["train/loss_cls"]), rel=1e-5
        )


def test_first_and_every_nth_step_are_logged(runs: ModuleType, tmp_path: Path) -> None:
    """Steps are counted as everywhere else: the first is 1; the last is logged, too."""
    run = runs.pretrain(tmp_path, "trainer.max_steps=7", "trainer.log_every_n_steps=3", "micro_batch_size=2")
    rows = runs.metrics(run)
    assert [int(row["step"]) for row in rows] == [1, 3, 6, 7]
    assert all(row["train/loss"] and row["train/grad_norm"] and row["train/effective_rank"] for row in rows)


def test_a_run_shorter_than_the_log_interval_is_logged(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "trainer.max_steps=2", "trainer.log_every_n_steps=50")
    assert runs.metrics(run)


def test_checkpoint_rebuilds_the_model_without_executing_anything(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "trainer.max_steps=1")
    content = runs.load(run, 1)  # weights_only=True
    assert content["global_step"] == 1
    assert content["d2v"]["config"]["model"]["encoder"]["embed_dim"] == 32
    assert content["d2v"]["config"]["global_batch_size"] == 4
