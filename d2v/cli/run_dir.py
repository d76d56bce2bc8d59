"""Where a run lives: ``outputs/NAME/TIME``, or the folder of the run that is being resumed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
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
    parent = Path(output_dir) / (name or "run")
    if resume == "auto":
        for folder in sorted(parent.glob("*/checkpoints"), reverse=True):
            if any(folder.glob("step-*.ckpt")) and _overrides_of(folder.parent) == _identity(overrides):
                return str(folder.parent)
    elif resume:
        path = Path(resume)
        folder = path if path.is_dir() else path.parent
        return str(folder.parent if folder.name == "checkpoints" else folder)
    folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while folder.exists():
        attempt += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{attempt}")
    return str(folder)


def _identity(overrides: Sequence[str]) -> list[str]:
    return sorted(o for o in overrides if not o.lstrip("+~").startswith(_NOT_THE_RUN))


def _overrides_of(folder: Path) -> list[str] | None:
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    return _identity(yaml.safe_load(path.read_text()) or [])
