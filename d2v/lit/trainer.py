"""Settings of the trainer: the keys of ``trainer``, and reasons why others are refused.

The training loop is Lightning's, but it counts optimizer steps and has no epochs, no validation loop and no
accumulation of its own. Lightning's arguments for these would be ignored or have another effect.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from lightning.fabric.plugins.environments import (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from d2v.arguments import check, parameters
from d2v.values import Count, Name, NonNegativeFloat, PositiveSteps, Range


@dataclass(frozen=True)
class TrainerOptions:
    """The keys of ``trainer``; any other is refused.

    Attributes:
        max_steps: optimizer steps of the run, at least 1.
        max_time: stop after DD:HH:MM:SS, counted from the start of this process's training; None: never.
        accelerator: what computes; auto: a GPU if there is one.
        devices: how many on each machine; -1 or auto: all GPUs, or one CPU; a list: the GPUs with these indices.
        num_nodes: machines, at least 1.
        strategy: how the model is spread over devices; auto: ddp where there are several.
        precision: auto: bf16-mixed where the hardware computes in bfloat16, else 32-true.
        gradient_clip_val: highest global norm of the gradient, at least 0; None: no limit.
        log_every_n_steps: optimizer steps between two logged ones; the first and the last are logged, too.
        deterministic: use deterministic algorithms only, or warn where there is none.
        benchmark: let cuDNN try its algorithms; None: as Lightning chooses.
        detect_anomaly: name the forward operation with the backward pass that gave NaN; slow.
        profiler: print what the loop's parts took at the end.
    """

    max_steps: PositiveSteps
    max_time: Name | None = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Literal["auto"] | Annotated[int, Range(-1, 10**5)] | list[Count] = 1
    num_nodes: Annotated[int, Range(1, 10**5)] = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    gradient_clip_val: NonNegativeFloat | None = None
    log_every_n_steps: PositiveSteps = 50
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced"] | None = None


_STEPS = "a run is counted in optimizer steps: set max_steps (d2v finetune: or epochs)"
_NO_VALIDATION = (
    "there is no validation loop: set every_n_steps of the callbacks ScoreEvery (d2v finetune) and OnlineProbe (d2v "
    "pretrain callbacks=probe)"
)
_SHORT = "the data are read in the order of the seed, as far as max_steps goes: set that, or use less data"
_OURS = "d2v sets it itself: remove it"
REFUSED = {
    "max_epochs": _STEPS,
    "min_epochs": _STEPS,
    "min_steps": _STEPS,
    "fast_dev_run": "set max_steps=2 (d2v pretrain: or debug=smoke)",
    "limit_train_batches": _SHORT,
    "overfit_batches": _SHORT,
    "limit_val_batches": _NO_VALIDATION,
    "limit_test_batches": _NO_VALIDATION,
    "limit_predict_batches": _NO_VALIDATION,
    "val_check_interval": _NO_VALIDATION,
    "check_val_every_n_epoch": _NO_VALIDATION,
    "num_sanity_val_steps": _NO_VALIDATION,
    "accumulate_grad_batches": "it follows from global_batch_size, micro_batch_size and the devices: set those",
    "gradient_clip_algorithm": "gradients are clipped by their global norm: set gradient_clip_val",
    "logger": "choose csv, tensorboard or wandb by the group logger",
    "callbacks": "add one by +callbacks.NAME._target_=CLASS",
    "enable_checkpointing": "leave checkpoints out by '~callbacks.checkpoint'",
    "enable_progress_bar": "leave it out by '~callbacks.progress'",
    "enable_model_summary": _OURS,
    "use_distributed_sampler": _OURS,
    "reload_dataloaders_every_n_epochs": _OURS,
    "plugins": _OURS,
    "inference_mode": _OURS,
    "barebones": _OURS,
    "enable_autolog_hparams": _OURS,
    "model_registry": _OURS,
    "sync_batchnorm": "no model here has batch norm: remove it",
    "default_root_dir": "set output_dir=DIR or hydra.run.dir=DIR",
}


def check_trainer(node: Mapping[str, Any]) -> None:
    """Raise ValueError for a key or value of ``trainer`` that this training loop does not support.

    ``max_steps`` may be null: fine-tuning derives it from ``epochs``.
    """
    known = parameters(TrainerOptions)
    for key, value in node.items():
        if key in REFUSED:
            raise ValueError(f"{key}={value}: {REFUSED[key]}")
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}=...?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{key}={value}: no such setting; {hint}")
        if key != "max_steps" or value is not None:
            check(value, known[key].annotation, key)


def trainer_options(node: Mapping[str, Any]) -> TrainerOptions:
    """Read the ``trainer`` configuration.

    Raises:
        ValueError: as :func:`check_trainer`, or ``max_steps`` is missing.
    """
    plain: dict[str, Any] = {
        str(key): list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in node.items()
    }
    check_trainer(plain)
    if plain.get("max_steps") is None:
        raise ValueError("max_steps=null: give the number of optimizer steps, at least 1")
    return TrainerOptions(**plain)


def choose_devices(options: TrainerOptions, num_cores: int) -> tuple[str, int | list[int]]:
    """Return the accelerator's name and its devices on this machine.

    Args:
        options: settings of the trainer.
        num_cores: cores of this machine.

    Raises:
        ValueError: this machine has no such devices, or several machines were requested without torchrun or srun.
    """
    gpus = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    best = next((name for name, count in gpus.items() if count), "cpu")
    wanted = options.accelerator
    accelerator = best if wanted == "auto" else "cuda" if wanted == "gpu" and best == "cpu" else wanted
    accelerator = best if accelerator == "gpu" else accelerator
    _check_nodes(options.num_nodes)
    if accelerator != "cpu" and not gpus[accelerator]:
        raise ValueError(f"accelerator={wanted}: PyTorch finds no such GPU here: set accelerator=cpu")
    if accelerator == "cpu":
        return accelerator, _cpu_processes(options.devices, asked_for=wanted == "cpu", num_cores=num_cores)
    return accelerator, _gpus(options.devices, gpus[accelerator])


def _cpu_processes(devices: int | str | list[int], asked_for: bool, num_cores: int) -> int:
    if devices == "auto":
        return 1
    if not asked_for and devices != 1:
        raise ValueError(
            f"devices={devices}: this machine has no GPU that PyTorch can use; set devices=1, or "
            "accelerator=cpu for so many processes on its CPU"
        )
    if not _is_count(devices):
        raise ValueError(f"devices={devices}: give the number of processes on this CPU, at least 1")
    assert isinstance(devices, int)
    most = max(8, num_cores)
    if devices > most:
        raise ValueError(f"devices={devices}: this machine has {num_cores} cores; set {most} or fewer")
    return devices


def _gpus(devices: int | str | list[int], count: int) -> int | list[int]:
    there = "1 GPU, number 0" if count == 1 else f"{count} GPUs, numbers 0 to {count - 1}"
    if devices in (-1, "auto"):
        return count
    if _is_count(devices):
        assert isinstance(devices, int)
        if devices > count:
            raise ValueError(f"devices={devices}: this machine has {there}; set devices={count}")
        return devices
    if not isinstance(devices, list) or not devices:
        raise ValueError(f"devices={devices}: give a number of GPUs, a list of theirs such as [0], or -1 for all")
    bad = [i for i in devices if i >= count]
    if bad or len(set(devices)) < len(devices):
        what = f"no GPU {bad[0]} here" if bad else "a GPU is there twice"
        raise ValueError(f"devices={devices}: {what}; this machine has {there}")
    return devices


def _check_nodes(num_nodes: int) -> None:
    launchers = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    if num_nodes > 1 and not any(one.detect() for one in launchers) and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"num_nodes={num_nodes}: nothing has started this command on other machines, for which it would "
            "wait: start it by torchrun or srun (docs/scaling.md), or set num_nodes=1"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
