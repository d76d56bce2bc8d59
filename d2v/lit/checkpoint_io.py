"""Atomic writing of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from d2v.errors import UserError
from d2v.runs.checkpoints import find_damage, list_checkpoints
from d2v.runs.files import NO_ROOM, disk_error, replacing

log = logging.getLogger(__name__)


class NotSaved(UserError, RuntimeError):
    """The last checkpoint of a run could not be written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writer of checkpoints to a temporary file in the same folder, renamed when complete.

    Lightning's writer uses the system's temporary folder, from which moving may mean copying. A full or missing disk
    fails the checkpoint, not the run.

    Attributes:
        error: error of the last checkpoint; None if it was written.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file of ``torch.save``; tensors and plain containers only."""
        path = Path(path)
        self.error = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = disk_error(error)  # torch's writer raises errors of its own
            if cause is None:
                raise
            self.error = cause
            log.error("%s could not be written (%s)", path, cause)


def save(trainer: L.Trainer, path: Path, weights_only: bool = False, keep: Collection[Path] = ()) -> OSError | None:
    """Save a checkpoint, on all ranks together; if the disk is full, delete older ones.

    Args:
        trainer: trainer of the run.
        path: path of the checkpoint.
        weights_only: leave out the optimizer's state.
        keep: checkpoints that must not be deleted.

    Returns:
        The reason why it could not be written, the same on every rank; None if it was written.
    """
    while True:
        trainer.save_checkpoint(path, weights_only=weights_only)
        io = trainer.strategy.checkpoint_io
        error: OSError | None = trainer.strategy.broadcast(io.error if isinstance(io, AtomicCheckpointIO) else None)
        if error is None:
            return None
        freed: bool = trainer.strategy.broadcast(trainer.is_global_zero and make_room(error, path.parent, keep))
        if not freed:
            return error


def make_room(error: OSError, folder: Path, keep: Collection[Path] = ()) -> bool:
    """Delete the oldest checkpoint of a folder on a full disk, if a newer one is intact and it need not be kept.

    Otherwise keeping k checkpoints would need room for k + 1, and on a disk with room for k no save would succeed.

    Returns:
        Whether a checkpoint was deleted.
    """
    if error.errno not in NO_ROOM:
        return False
    checkpoints = list_checkpoints(folder)
    newest = next((path for path in checkpoints if find_damage(path) is None), None)
    superseded = [] if newest is None else checkpoints[checkpoints.index(newest) + 1 :]
    oldest = next((path for path in reversed(superseded) if path not in keep), None)
    if oldest is None or newest is None:
        return False
    try:
        oldest.unlink()
    except OSError as problem:
        log.error("%s could not be deleted to make room (%s)", oldest, problem)
        return False
    log.warning("the disk is full: %s is deleted to make room, %s is newer and intact", oldest, newest.name)
    return True


def point(link: Path, target: Path) -> None:
    """Point ``link`` to a file beside it, atomically; a full or missing disk is logged."""
    part = link.with_name(f".{link.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target.name)
        part.replace(link)
    except OSError as error:
        log.error("%s could not be made a link to %s (%s)", link, target.name, error)
