"""From what a user asks for to Lightning's trainer; run records; the summary before training."""

from __future__ import annotations

import inspect
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from d2v.data.sampler import BatchSplit
from d2v.lit.checkpoint_io import AtomicCheckpointIO
from d2v.lit.machine import choose_precision, keep_freed_memory
from d2v.lit.strategies import FullyShardedStrategy, choose_strategy

log = logging.getLogger(__name__)


def write_run_record(path: Path, record: dict[str, Any]) -> None:
    """Write or, after a resume, extend ``run.json``: a list, one entry a start."""
    entries = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*entries, record], indent=2) + "\n")


def make_trainer(node: Any, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Lightning's trainer with our settings where they are not a matter of taste.

    Args:
        node: the ``trainer`` configuration, keyword arguments of ``lightning.Trainer``; ``precision`` may be "auto".
        callbacks: in the order they are to be called.
        loggers: where metrics go.
    """
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    accelerator = str(arguments.get("accelerator", "auto"))
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator == "cpu":
        keep_freed_memory()
    arguments["precision"] = choose_precision(arguments["precision"], {"gpu": "cuda"}.get(accelerator, accelerator))
    if arguments["max_steps"] < 1:
        raise ValueError(f"trainer.max_steps={arguments['max_steps']}: give the number of optimizer steps, at least 1")
    several = (arguments.get("devices"), arguments.get("num_nodes")) != (1, 1)
    arguments["strategy"] = choose_strategy(str(arguments.get("strategy", "auto")), several)
    unknown = arguments.keys() - inspect.signature(L.Trainer).parameters.keys()
    if unknown:
        raise ValueError(f"trainer.{sorted(unknown)[0]}: lightning.Trainer has no such argument; remove it")
    # Requeueing is ours (see CheckpointEvery): Lightning would save in the middle of a step.
    in_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun's processes are its own
    slurm = [SLURMEnvironment(auto_requeue=False)] if in_slurm else []
    try:
        return L.Trainer(
            **arguments,
            max_epochs=-1,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *slurm],
            logger=loggers or False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
    except MisconfigurationException as error:  # a value of the user's
        raise ValueError(str(error)) from error


def check_compile(trainer: L.Trainer) -> None:
    """Raise ValueError where ``compile=true`` cannot be: without a compiler, or under FSDP; else say what it takes."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # these take seconds to import
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if isinstance(trainer.strategy, FullyShardedStrategy):
        raise ValueError(
            "compile=true: not with trainer.strategy=fsdp, which gathers weights within the graph: set "
            "trainer.strategy=ddp, or compile=false"
        )
    device = trainer.strategy.root_device.type
    if device == "cuda" and not has_triton():
        raise ValueError("compile=true: PyTorch finds no Triton for this GPU: install triton, or set compile=false")
    if device == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError(
                "compile=true: PyTorch finds no C++ compiler: install one (g++), name it in the environment variable "
                "CXX, or set compile=false"
            ) from error
    if trainer.is_global_zero:
        log.info("compile=true: the first step waits for the compiler, minutes for a large model")


def summary(
    model: Any, data: Any, mask: Any, split: BatchSplit, trainer: L.Trainer, threads: int, workers: int, run_dir: Path
) -> str:
    """What is about to run, in a few lines: sizes, data, batch arithmetic, epochs, masks, CLS weight, machine."""

    def millions(module: torch.nn.Module) -> str:
        return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f}M"

    num_tokens = math.prod(data.token_grid)
    visible = mask.num_visible(num_tokens)
    batch = split.global_batch_size
    unit = "" if data.batch_unit == "samples" else f" {data.batch_unit}"
    size = "streamed" if data.size is None else f"{data.size:,.0f} {data.batch_unit}"
    epochs = "" if data.size is None else f" = {trainer.max_steps * batch / data.size:.1f} epochs"
    cls_weight = f", CLS weight {model.cls_loss_weight:g}" if hasattr(model, "cls_loss_weight") else ""
    loss = [f"loss      scale {model.loss_scale:.4g}{cls_weight}"] if hasattr(model, "loss_scale") else []
    lines = [
        f"model     encoder {millions(model.student)}, {model.predictors_are} {millions(model.predictors)} parameters",
        f"data      {size}, {data.tokens_are} {num_tokens} tokens; {mask.num_masks} masks a sample, "
        f"{visible} tokens visible, {1 - visible / num_tokens:.1%} masked",
        *data.describe(),
        f"batch     {batch:g}{unit} = {split.micro_batch_size:g} x {split.accumulate} accumulated x {split.world_size} "
        f"devices; {trainer.max_steps:,} steps{epochs}",
        *loss,
        f"machine   {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, {trainer.precision}, "
        f"{threads} threads, {workers} data workers",
        f"run       {run_dir}",
    ]
    return "\n".join(lines)


def quiet_libraries() -> None:
    """Silence notices about what is meant to be so: the teacher in eval mode, few data workers on a CPU, no srun."""
    for message in (
        "Found .* in eval mode",
        ".*does not have many workers",
        ".*LeafSpec.*",
        "The `srun` command",
        "FSDP2-wrapped module .* returned a view",  # nothing works in place on what a block returns
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
