"""From what a user asks for to what this machine should do: precision, threads, accumulation, run records."""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import math
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from d2v.data.sampler import BatchSplit
from d2v.lit.checkpoint_io import AtomicCheckpointIO
from d2v.lit.strategies import FullyShardedStrategy, choose_strategy
from d2v.version import __version__

log = logging.getLogger(__name__)


def choose_precision(precision: str, accelerator: str, key: str = "trainer.precision") -> str:
    """``auto`` becomes bf16-mixed where the hardware computes in bfloat16, else 32-true.

    CPUs with AMX or AVX-512's bfloat16 instructions count.

    Args:
        precision: "auto", "32-true" or "bf16-mixed".
        accelerator: "cpu", "cuda" or "mps".
        key: of the configuration, for errors.

    Raises:
        ValueError: a precision whose weights are not float32: the teacher's average needs them.
    """
    allowed = ("auto", "32-true", "bf16-mixed")  # 16-mixed would clip scaled gradients
    if str(precision) not in allowed:
        raise ValueError(f"{key}={precision}: choose one of {', '.join(allowed)}")
    if precision != "auto":
        return str(precision)
    if accelerator == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if fast else "32-true"


def available_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_a_process(num_processes: int) -> int:
    """Cores for one of so many processes on this machine: a share of all, or those that Slurm gave to it alone."""
    cores = available_cores()
    bound = cores <= int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) and "SLURM_PROCID" in os.environ
    return cores if bound else max(1, cores // num_processes)


def choose_workers(num_workers: int | str, device_type: str, num_processes: int = 1) -> int:
    """Data workers of a process; ``auto``: none where a CPU computes (it needs the cores), else one a core, at most 10.

    Args:
        num_workers: a number, or "auto".
        device_type: what computes: "cpu", "cuda" or "mps".
        num_processes: on this machine, which share its cores.
    """
    if num_workers == "auto":
        return 0 if device_type == "cpu" else min(10, cores_of_a_process(num_processes))
    if not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"num_workers={num_workers}: give a number from 0 on, or auto")
    return num_workers


def set_threads(num_threads: int | str, num_workers: int, num_processes: int = 1) -> int:
    """Compute threads: ``auto`` leaves a core to each data worker. One thread too many makes a step far slower.

    Args:
        num_threads: of this process, or "auto".
        num_workers: of this process.
        num_processes: on this machine, which share its cores.

    Returns:
        Threads in use; OMP_NUM_THREADS, where set, has the last word over ``auto``.
    """
    if num_threads == "auto":
        if "OMP_NUM_THREADS" in os.environ:
            return torch.get_num_threads()
        num_threads = max(1, cores_of_a_process(num_processes) - num_workers)
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"num_threads={num_threads}: give a number from 1 on, or auto")
    torch.set_num_threads(num_threads)
    return num_threads


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step instead of handing it back to the system, page by page.

    On a CPU a tiny model's step takes a sixth less time (docs/performance.md); up to 2 GB may stay with the process.

    Returns:
        Whether this system's allocator could be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # malloc.h
    options = {mmap_threshold: 32 << 20, trim_threshold: 2**31 - 1, top_pad: 64 << 20}  # bytes
    return sum(mallopt(option, value) for option, value in options.items()) == len(options)


def describe_run(seed: int) -> dict[str, Any]:
    """What one needs to repeat a run: command, code revision, versions, machine, seed."""
    packages = ("torch", "torchvision", "timm", "lightning", "hydra-core", "omegaconf", "numpy")
    return {
        "d2v": __version__,
        "command": ["d2v", Path(sys.argv[0]).stem, *sys.argv[1:]],
        "git": _git_revision(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cores": available_cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seed": seed,
    }


def write_run_record(path: Path, record: dict[str, Any]) -> None:
    """Write or, after a resume, extend ``run.json``: a list, one entry a start."""
    entries = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*entries, record], indent=2) + "\n")


def _git_revision(checkout: Path) -> dict[str, Any] | None:
    """Return the revision of a git checkout and whether files differ from it; None if the folder is none itself.

    A repository's configuration can name programs that git runs, so only the one that this code comes from is asked,
    never one that happens to lie above (an environment inside somebody else's project).
    """
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout), "-c", "core.fsmonitor=false", "--no-optional-locks"]
    questions = (["rev-parse", "HEAD"], ["status", "--porcelain", "--ignore-submodules=all"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        revision, status = (
            subprocess.run([*git, *question], capture_output=True, text=True, check=True, env=environment).stdout
            for question in questions
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.strip(), "dirty": bool(status.strip())}


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
