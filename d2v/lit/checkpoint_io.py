"""Writing of checkpoints to the disk: whole or not at all."""

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
    """A run's last checkpoint could not be written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and then moves it into place, so that no reader ever sees half of one.

    Lightning's own writes into the system's temporary folder first, from which moving may mean copying. A disk that is
    full or gone fails the checkpoint and not the run.

    Attributes:
        error: what went wrong with the last checkpoint; None if it was written.
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
            cause = disk_error(error)  # of which torch's writer makes errors of its own
            if cause is None:
                raise
            self.error = cause
            log.error("%s could not be written (%s)", path, cause)


def save(trainer: L.Trainer, path: Path, weights_only: bool = False, keep: Collection[Path] = ()) -> OSError | None:
    """Let all ranks save a checkpoint together; where the disk is full, older ones make room for it.

    Args:
        trainer: of the run.
        path: of the checkpoint.
        weights_only: leave out the optimizer's state.
        keep: checkpoints that are not to make room.

    Returns:
        Why it could not be written, the same on every rank; None if it was.
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
    """Delete the oldest checkpoint of a folder on a full disk, if a newer one is intact and it is not to be kept.

    Keeping k checkpoints would need room for k + 1 otherwise, and a disk that holds k would keep the run from ever
    saving again.

    Returns:
        Whether one was deleted.
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
    """Let ``link`` mean a file beside it; at no time does it mean none. A disk that is full or gone is logged."""
    part = link.with_name(f".{link.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target.name)
        part.replace(link)
    except OSError as error:
        log.error("%s could not be made a link to %s (%s)", link, target.name, error)
