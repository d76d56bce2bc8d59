"""What ``trainer.*`` may say, and which devices there are."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from d2v.lit import setup
from d2v.lit.trainer import REFUSED, TrainerOptions, choose_devices, trainer_options


def options(**values: Any) -> TrainerOptions:
    return trainer_options(OmegaConf.create({"max_steps": 4, **values}))


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """One with so many GPUs, whose processes nobody else has started."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def test_every_argument_of_lightnings_trainer_is_taken_or_refused() -> None:
    arguments = inspect.signature(L.Trainer).parameters.keys()
    assert arguments - {field.name for field in fields(TrainerOptions)} == REFUSED.keys()


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("max_epochs", "max_steps"),
        ("min_steps", "max_steps"),
        ("limit_train_batches", "max_steps"),
        ("overfit_batches", "max_steps"),
        ("accumulate_grad_batches", "micro_batch_size"),
        ("val_check_interval", "the callbacks ScoreEvery"),
        ("fast_dev_run", "max_steps=2"),
        ("enable_checkpointing", "'~callbacks.checkpoint'"),
        ("default_root_dir", "output_dir"),
        ("max_step", "did you mean max_steps"),
        ("warmup", "no such setting; known: max_steps"),
        ("_target_", "no such setting"),
    ],
)
def test_what_means_nothing_here_is_refused(key: str, fix: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}=2: .*{fix}"):
        options(**{key: 2})


def test_the_trainer_is_told_what_it_was_given() -> None:
    node = {"log_every_n_steps": 7, "gradient_clip_val": 0.5, "accelerator": "cpu", "detect_anomaly": True}
    trainer: Any = setup.make_trainer(OmegaConf.create({"max_steps": 4, **node}), [], [])
    try:
        assert (trainer.max_steps, trainer.log_every_n_steps, trainer.gradient_clip_val) == (4, 7, 0.5)
        assert trainer._detect_anomaly
    finally:
        torch.autograd.set_detect_anomaly(False)


@pytest.mark.parametrize(
    ("gpus", "given", "accelerator", "devices"),
    [
        (0, {}, "cpu", 1),
        (0, {"devices": "auto"}, "cpu", 1),
        (0, {"accelerator": "cpu", "devices": 2}, "cpu", 2),
        (4, {}, "cuda", 1),
        (4, {"accelerator": "gpu", "devices": 4}, "cuda", 4),
        (4, {"devices": -1}, "cuda", 4),
        (4, {"devices": "auto"}, "cuda", 4),
        (4, {"devices": [0, 3]}, "cuda", [0, 3]),
        (4, {"accelerator": "cpu", "devices": 2}, "cpu", 2),
    ],
)
def test_devices_that_are_there(
    monkeypatch: pytest.MonkeyPatch, gpus: int, given: dict[str, Any], accelerator: str, devices: Any
) -> None:
    machine(monkeypatch, gpus)
    assert choose_devices(options(**given), 2) == (accelerator, devices)


@pytest.mark.parametrize(
    ("gpus", "given", "message"),
    [
        (0, {"devices": 2}, r"devices=2: this machine has no GPU.*accelerator=cpu"),
        (0, {"devices": -1}, r"devices=-1: this machine has no GPU"),
        (0, {"devices": [0, 5]}, r"devices=\[0, 5\]: this machine has no GPU"),
        (0, {"devices": "two"}, r"devices=two: give auto or a whole number"),
        (0, {"accelerator": "cpu", "devices": "two"}, r"devices=two: give auto or a whole number"),
        (0, {"accelerator": "cpu", "devices": -1}, r"devices=-1: give the number of processes"),
        (0, {"accelerator": "cpu", "devices": [0, 1]}, r"devices=\[0, 1\]: give the number of processes"),
        (0, {"accelerator": "cpu", "devices": 0}, r"devices=0: give the number of processes"),
        (0, {"accelerator": "cpu", "devices": 1.5}, r"devices=1\.5: give auto or a whole number"),
        (0, {"accelerator": "cpu", "devices": True}, r"devices=true: give auto or a whole number"),
        (
            0,
            {"accelerator": "cpu", "devices": 1000},
            r"devices=1000: this machine has 2 cores; set 8 or fewer",
        ),
        (0, {"accelerator": "gpu"}, r"accelerator=gpu: PyTorch finds no such GPU.*accelerator=cpu"),
        (0, {"accelerator": "cuda"}, r"accelerator=cuda: PyTorch finds no such GPU"),
        (2, {"accelerator": "mps"}, r"accelerator=mps: PyTorch finds no such GPU"),
        (2, {"accelerator": "tpu"}, r"accelerator=tpu: choose one of auto, cpu, gpu"),
        (2, {"devices": 3}, r"devices=3: this machine has 2 GPUs, numbers 0 to 1; set devices=2"),
        (1, {"devices": 8}, r"devices=8: this machine has 1 GPU, number 0; set devices=1"),
        (2, {"devices": [0, 5]}, r"devices=\[0, 5\]: no GPU 5 here; this machine has 2 GPUs"),
        (2, {"devices": [1, 1]}, r"devices=\[1, 1\]: a GPU is there twice"),
        (2, {"devices": ["0"]}, r"devices\[0\]=0: give a whole number"),
        (2, {"devices": []}, r"devices=\[\]: give a number of GPUs, a list"),
        (2, {"devices": "two"}, r"devices=two: give auto or a whole number"),
        (2, {"devices": -2}, r"devices=-2: give auto or a whole number from -1"),
        (2, {"devices": 0}, r"devices=0: give a number of GPUs"),
        (2, {"num_nodes": 2}, r"num_nodes=2: nothing has started.*torchrun or srun"),
        (0, {"num_nodes": 0}, r"num_nodes=0: give a whole number from 1"),
        (0, {"num_nodes": "two"}, r"num_nodes=two: give a whole number from 1"),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, gpus: int, given: dict[str, Any], message: str
) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(ValueError, match=f"^{message}"):
        choose_devices(options(**given), 2)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "many", "", None])
def test_steps_are_counted(steps: Any) -> None:
    shown = "null" if steps is None else steps
    with pytest.raises(ValueError, match=rf"^max_steps={shown}: give (a whole number from 1|the number of)"):
        trainer_options({"max_steps": steps})


def test_machines_that_torchrun_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert choose_devices(options(num_nodes=2, devices=2), 2) == ("cuda", 2)
