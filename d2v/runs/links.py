"""Check for links in a run's folder through which the run would write elsewhere."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

from d2v.errors import UserError
from d2v.runs.checkpoints import FOLDER
from d2v.runs.metrics import METRICS
from d2v.runs.record import CONFIG, RECORD

_OF_A_RUN = (FOLDER, ".hydra", CONFIG, RECORD, METRICS)
_WANDB_LOG = "wandb/*run-*/logs/*.log"


class LeadsElsewhere(UserError):
    """A link in a run's folder leads out of it."""


def check_links(folder: str | Path) -> None:
    """Refuse a run's folder with a link that a write would follow out of it.

    Allowed are: the folder itself, which the user has named; checkpoints, which are read, or replaced as a whole; and
    wandb's logs, because every start writes new ones.

    Raises:
        LeadsElsewhere: the message names the link and its target.
    """
    folder = Path(folder)
    root = folder.resolve()
    is_run = any(os.path.lexists(folder / name) for name in _OF_A_RUN)
    for place, folders, files in os.walk(folder):
        names = [*folders, *files]
        if not is_run:
            folders.clear()  # never written to
        for name in names:
            path = Path(place, name)
            if not path.is_symlink() or path.resolve().is_relative_to(root):
                continue
            if path.suffix == ".ckpt" and not path.is_dir():
                continue
            if fnmatch(path.relative_to(folder).as_posix(), _WANDB_LOG) and not path.is_dir():
                continue
            raise LeadsElsewhere(
                f"{path} is a link to {os.readlink(path)}, outside of the run's folder: refused, a run writes to its "
                f"own folder only. Replace the link by what it points to; or, if the run is yours, go on in a folder "
                f"on the other disk: resume={folder}/{FOLDER}/step-....ckpt hydra.run.dir=DIR"
            )
