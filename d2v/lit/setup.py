"""Make Lightning's trainer from the settings of a user; print the summary before training."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from d2v.data.batching import BatchSplit
from d2v.data.protocol import TrainingData
from d2v.lit.callbacks.stop import StopWhenTold, parse_time
from d2v.lit.checkpoint_io import AtomicCheckpointIO
from d2v.lit.machine import available_cores, choose_precision, keep_freed_memory
from d2v.lit.strategies import FullyShardedStrategy, choose_strategy
from d2v.lit.trainer import choose_devices, trainer_options
from d2v.objective.masking import MaskGenerator
from d2v.types import Targets

log = logging.getLogger(__name__)


def make_trainer(node: Any, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Build Lightning's trainer, with the settings that d2v requires.

    Args:
        node: the ``trainer`` configuration: the fields of :class:`~d2v.lit.trainer.TrainerOptions`.
        callbacks: callbacks, in the order of their calls.
        loggers: loggers of metrics.

    Raises:
        ValueError: a setting is not supported, or devices do not exist.
    """
    options = trainer_options(node)
    accelerator, devices = choose_devices(options, available_cores())
    if accelerator == "cpu":
        keep_freed_memory()
    stop = StopWhenTold(parse_time(options.max_time))
    several = (devices if isinstance(devices, int) else len(devices), options.num_nodes) != (1, 1)
    # Requeueing is ours (see CheckpointEvery): Lightning would save in the middle of a step.
    in_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun's processes are its own
    slurm = [SLURMEnvironment(auto_requeue=False)] if in_slurm else []
    try:
        return L.Trainer(
            max_steps=options.max_steps,
            accelerator=accelerator,
            devices=devices,
            num_nodes=options.num_nodes,
            strategy=choose_strategy(options.strategy, several),
            precision=choose_precision(options.precision, accelerator),
            gradient_clip_val=options.gradient_clip_val,
            log_every_n_steps=options.log_every_n_steps,
            deterministic=options.deterministic,
            benchmark=options.benchmark,
            detect_anomaly=options.detect_anomaly,
            profiler=options.profiler,
            max_epochs=-1,
            callbacks=[*_progress_last(callbacks), stop],
            plugins=[AtomicCheckpointIO(), *slurm],
            logger=loggers or False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
    except MisconfigurationException as error:  # value of the user
        raise ValueError(str(error)) from error


def _progress_last(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Move progress to the end, because it shows what all other callbacks have logged; keep their order."""
    return sorted(callbacks, key=lambda callback: isinstance(callback, ProgressBar))


def check_compile(trainer: L.Trainer) -> None:
    """Raise ValueError if ``compile=true`` is impossible (no compiler, FSDP); else log that the first step is slow."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # these take seconds to import
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if isinstance(trainer.strategy, FullyShardedStrategy):
        raise ValueError(
            "compile=true: not with strategy=fsdp, which gathers weights within the graph: set "
            "strategy=ddp, or compile=false"
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
    """Describe a run in a few lines: sizes, data, batch arithmetic, epochs, masks, CLS weight, machine."""

    def millions(module: torch.nn.Module) -> str:
        return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f}M"

    num_tokens = math.prod(data.token_grid)
    size = "streamed" if data.size is None else f"{data.size:,.0f} {data.batch_unit}"
    head = [
        f"model     encoder {millions(model.student)}, {model.predictors_are} {millions(model.predictors)} parameters",
        f"data      {size}, {data.tokens_are} {num_tokens} tokens{_mask_words(mask, num_tokens)}",
    ]
    return describe_session(head, data, split, trainer, threads, workers, run_dir, _loss_lines(model))


def describe_session(
    head: Sequence[str],
    data: TrainingData,
    split: BatchSplit,
    trainer: L.Trainer,
    threads: int,
    workers: int,
    run_dir: Path,
    loss: Sequence[str] = (),
) -> str:
    """Return the summary of a run: the first lines as given, then data, batch arithmetic, epochs, loss, machine."""
    batch = split.global_batch_size
    unit = "" if data.batch_unit == "samples" else f" {data.batch_unit}"
    epochs = "" if data.size is None else f" = {trainer.max_steps * batch / data.size:.1f} epochs"
    lines = [
        *head,
        *data.describe(),
        f"batch     {batch:g}{unit} = {split.micro_batch_size:g} x {split.accumulate} accumulated x {split.world_size} "
        f"devices; {trainer.max_steps:,} steps{epochs}",
        *loss,
        f"machine   {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, {trainer.precision}, "
        f"{threads} threads, {workers} data workers",
        f"run       {run_dir}",
    ]
    return "\n".join(lines)


def _mask_words(mask: MaskGenerator | None, num_tokens: int) -> str:
    if mask is None:
        return ", none masked"
    visible = mask.num_visible(num_tokens)
    return f"; {mask.num_masks} masks a sample, {visible} tokens visible, {1 - visible / num_tokens:.1%} masked"


def _loss_lines(model: Any) -> list[str]:
    """Return one line, or one for each modality if recipes differ; none for a model without :class:`Targets`."""
    recipes: dict[str, Targets] = getattr(model, "recipes", {})
    by_modality = {}
    for modality, recipe in recipes.items():
        cls_weight = f", CLS weight {recipe.cls_loss_weight:g}" if recipe.cls_loss_weight else ""
        by_modality[modality] = f"loss      scale {recipe.scale(model.student.embed_dim):.4g}{cls_weight}"
    if len(set(by_modality.values())) <= 1:
        return list(by_modality.values())[:1]
    return [f"{words} ({modality})" for modality, words in by_modality.items()]


def quiet_libraries() -> None:
    """Silence warnings about intended behaviour: the teacher in eval mode, few data workers on a CPU, no srun."""
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
