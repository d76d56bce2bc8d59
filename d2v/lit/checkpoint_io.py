"""How checkpoints come to the disk: whole or not at all."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from d2v.errors import UserError

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
        part = path.with_name(f".{path.name}.part")
        self.error = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:
            self.error = _cause(error)
            if self.error is None:
                raise
            with suppress(OSError):  # of a disk that is gone
                part.unlink(missing_ok=True)
            log.error("%s could not be written (%s)", path, self.error)


def save(trainer: L.Trainer, path: Path, weights_only: bool = False) -> OSError | None:
    """Let all ranks save a checkpoint together.

    Returns:
        Why it could not be written, the same on every rank; None if it was.
    """
    trainer.save_checkpoint(path, weights_only=weights_only)
    io = trainer.strategy.checkpoint_io
    error: OSError | None = trainer.strategy.broadcast(io.error if isinstance(io, AtomicCheckpointIO) else None)
    return error


def point(link: Path, target: Path) -> None:
    """Let ``link`` mean a file beside it; at no time does it mean none. A disk that is full or gone is logged."""
    part = link.with_name(f".{link.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target.name)
        part.replace(link)
    except OSError as error:
        log.error("%s could not be made a link to %s (%s)", link, target.name, error)


def _cause(error: BaseException | None) -> OSError | None:
    """torch's writer has errors of its own, raised while that of the disk is on its way."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
