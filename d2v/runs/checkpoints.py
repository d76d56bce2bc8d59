"""The checkpoints of a run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

from d2v.runs.archives import Damaged, check_archive

log = logging.getLogger(__name__)

FOLDER, BEST = "checkpoints", "best.ckpt"


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint of a step; names sort as steps do."""
    return f"step-{step:08d}.ckpt"


def list_checkpoints(dirpath: Path) -> list[Path]:
    """A folder's checkpoints, newest step first."""
    return sorted(dirpath.glob("step-*.ckpt"), reverse=True)


def saved_steps(dirpath: Path) -> list[int]:
    """Steps of a folder's checkpoints, newest first."""
    names = (path.stem.removeprefix("step-") for path in list_checkpoints(dirpath))
    return [int(name) for name in names if name.isdecimal()]


def newest_intact_checkpoint(dirpath: Path) -> Path | None:
    """The newest checkpoint that matches its checksums; damaged ones are named in the log and left out."""
    for path in list_checkpoints(dirpath):
        damage = find_damage(path)
        if damage is None:
            return path
        log.warning("%s is damaged (%s): falling back to the one before", path, damage)
    return None


def find_damage(path: Path) -> str | None:
    """Reason why a checkpoint cannot be read, or is not the one that was written; None if its checksums match."""
    try:
        check_archive(path)
    except (OSError, Damaged) as error:
        return str(error)
    return None
