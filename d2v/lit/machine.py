"""Machine a command runs on: precision, cores, threads, data workers, versions. Imports no Lightning."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from d2v.version import __version__

Auto = Literal["auto"]
Precision = Literal["32-true", "bf16-mixed"]  # 16-mixed would clip scaled gradients


def choose_precision(precision: Precision | Auto, accelerator: str) -> Precision:
    """``auto`` becomes bf16-mixed where the hardware computes in bfloat16, else 32-true.

    CPUs with AMX or AVX-512's bfloat16 instructions count.

    Args:
        precision: "auto", "32-true" or "bf16-mixed".
        accelerator: "cpu", "cuda" or "mps".
    """
    if precision != "auto":
        return precision
    if accelerator == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if fast else "32-true"


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_a_process(num_processes: int) -> int:
    """Return the cores for one of several processes on this machine: a share of all, or those that Slurm assigned."""
    cores = available_cores()
    bound = cores <= int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) and "SLURM_PROCID" in os.environ
    return cores if bound else max(1, cores // num_processes)


def choose_workers(num_workers: int | Auto, device_type: str, num_processes: int = 1) -> int:
    """Resolve the number of data workers; ``auto``: 0 for training on a CPU, else one for each core, at most 10.

    Args:
        num_workers: a number, or "auto".
        device_type: "cpu", "cuda" or "mps".
        num_processes: number of processes that share the machine's cores.
    """
    if isinstance(num_workers, str):
        return 0 if device_type == "cpu" else min(10, cores_of_a_process(num_processes))
    return num_workers


def set_threads(num_threads: int | Auto, num_workers: int, num_processes: int = 1) -> int:
    """Set the compute threads; ``auto`` leaves a core to each data worker. One thread too many makes steps far slower.

    Args:
        num_threads: a number, or "auto": OMP_NUM_THREADS if set, else the cores less the data workers.
        num_workers: data workers of this process.
        num_processes: number of processes that share the machine's cores.

    Returns:
        The number of threads.
    """
    if isinstance(num_threads, int):
        count = num_threads
    elif "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    else:
        count = max(1, cores_of_a_process(num_processes) - num_workers)
    torch.set_num_threads(count)
    return count


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step instead of returning it to the system, page by page.

    On a CPU a tiny model's step takes a sixth less time (docs/results/optimizations.md). Up to 2 GB may stay allocated.

    Returns:
        Whether the system's allocator has this setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # malloc.h
    options = {mmap_threshold: 32 << 20, trim_threshold: 2**31 - 1, top_pad: 64 << 20}  # bytes
    return sum(mallopt(option, value) for option, value in options.items()) == len(options)


def describe_run(seed: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """Return the facts needed to repeat a run: command, code revision, versions, machine, seed.

    Args:
        seed: seed of the run.
        command: command line of the run.
    """
    packages = ("torch", "timm", "lightning", "hydra-core", "omegaconf", "numpy")
    return {
        "d2v": __version__,
        "command": list(command),
        "git": _git_revision(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cores": available_cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seed": seed,
    }


def _git_revision(checkout: Path) -> dict[str, Any] | None:
    """Return the revision of a git checkout and whether files differ from it; None if the folder is no checkout.

    The configuration of a repository can name programs that git runs, so git reads only the repository of this code,
    never one above it (such as another project around this environment).
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
