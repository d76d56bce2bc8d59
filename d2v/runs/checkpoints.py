"""Checkpoints in a run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

from d2v.runs.archives import Damaged, check_archive

log = logging.getLogger(__name__)

FOLDER, BEST = "checkpoints", "best.ckpt"


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint of a step; names sort in the order of steps."""
    return f"step-{step:08d}.ckpt"


def list_checkpoints(dirpath: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest step first."""
    return sorted(dirpath.glob("step-*.ckpt"), reverse=True)


def saved_steps(dirpath: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, newest first."""
    names = (path.stem.removeprefix("step-") for path in list_checkpoints(dirpath))
    return [int(name) for name in names if name.isdecimal()]


def newest_intact_checkpoint(dirpath: Path) -> Path | None:
    """Return the newest checkpoint that matches its checksums; damaged ones are logged and skipped."""
    for path in list_checkpoints(dirpath):
        damage = find_damage(path)
        if damage is None:
            return path
        log.warning("%s is damaged (%s): falling back to the one before", path, damage)
    return None


def find_damage(path: Path) -> str | None:
    """Return why a checkpoint is unreadable or differs from what was written; None if its checksums match."""
    try:
        check_archive(path)
    except (OSError, Damaged) as error:
        return str(error)
    return None
