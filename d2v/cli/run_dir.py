"""Where a run lives: ``outputs/NAME/TIME``, or the folder of the run that is being resumed.

Processes that others start together (torchrun, srun) have clocks of their own and must agree on it: under torchrun the
first of them says, under Slurm the job's number takes the time's place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import yaml

_NOT_THE_RUN = ("resume=", "output_dir=", "hydra.")  # overrides that do not make it another run


def run_dir(output_dir: str, name: str | None, resume: str | None, overrides: Sequence[str]) -> str:
    """The run's folder (the Hydra resolver ``d2v.run_dir``).

    Args:
        output_dir: folder of all runs.
        name: the run's name, one folder below it.
        resume: None for a new run; "auto" for the newest run of the same overrides that has a checkpoint; or the path
            of a checkpoint or of a run.
        overrides: the command line's.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return _first_ranks(lambda: _choose(output_dir, name, resume, overrides))
    return _choose(output_dir, name, resume, overrides)


def _first_ranks(choose: Callable[[], str]) -> str:
    """What the first process of torchrun chooses, handed to all by the store where they will meet to train."""
    from torch.distributed import TCPStore

    env = os.environ
    serves = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun itself does
    address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = TCPStore(*address, is_master=serves, multi_tenant=True, timeout=timedelta(minutes=5))
    _stores.append(store)  # which the others may ask later
    key = f"d2v/run_dir/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if env["RANK"] == "0":
        store.set(key, choose())
    return store.get(key).decode()


def _choose(output_dir: str, name: str | None, resume: str | None, overrides: Sequence[str]) -> str:
    parent = Path(output_dir) / (name or "run")
    if resume == "auto":
        for folder in sorted(parent.glob("*/checkpoints"), reverse=True):
            if any(folder.glob("step-*.ckpt")) and _overrides_of(folder.parent) == _identity(overrides):
                return str(folder.parent)
    elif resume:
        path = Path(resume)
        folder = path if path.is_dir() else path.parent
        return str(folder.parent if folder.name == "checkpoints" else folder)
    step = _slurm_step()
    if step is not None:
        return str(parent / step)
    folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while folder.exists():
        attempt += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{attempt}")
    return str(folder)


_stores: list[object] = []


def _slurm_step() -> str | None:
    """What all tasks of a Slurm job step share, also when the job is requeued; None where there are not several."""
    env = os.environ
    if int(env.get("SLURM_NTASKS", 1)) < 2 or "SLURM_PROCID" not in env:
        return None
    return f"slurm-{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', 0)}"


def _identity(overrides: Sequence[str]) -> list[str]:
    return sorted(o for o in overrides if not o.lstrip("+~").startswith(_NOT_THE_RUN))


def _overrides_of(folder: Path) -> list[str] | None:
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    return _identity(yaml.safe_load(path.read_text()) or [])
