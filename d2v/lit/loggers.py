"""Loggers: a CSV file that survives resuming, TensorBoard, and Weights & Biases with one run across resumes."""

from __future__ import annotations

import logging
import netrc
import os
import re
import uuid
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from d2v.errors import UserError, how_to_install
from d2v.runs.files import replace_text
from d2v.runs.metrics import METRICS, MetricsFile
from d2v.values import buildable

log = logging.getLogger(__name__)


@buildable
class CSVLogger(Logger):
    """Logger to ``metrics.csv``, with one row for each logged step, appended at once.

    Lightning's CSV logger deletes the file when a run is resumed; this one keeps it. Steps that are repeated after a
    resume appear again; later rows are the valid ones.

    Args:
        run_dir: folder of ``metrics.csv``.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self._file = MetricsFile(Path(run_dir) / METRICS)
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Empty, because the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Empty, because resumed runs share the file."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of ``metrics.csv``."""
        return str(self._file.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because ``config.yaml`` holds the resolved configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect a step's metrics; the row is written when the next step begins."""
        if self._row and self._row["step"] != step:
            self.save()
        self._row.update(metrics, step=step)

    @rank_zero_only
    def save(self) -> None:
        """Append the pending row; rewrite the file if the row has new columns."""
        if not self._row:
            return
        try:
            self._file.append(self._row)
        except OSError as error:  # a full disk costs a row, and not the run
            log.error("%s: the metrics of step %s could not be written (%s)", self._file.path, self._row["step"], error)
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the pending row."""
        self.save()


@buildable
def tensorboard_logger(run_dir: str | Path) -> TensorBoardLogger:
    """Build a logger to TensorBoard event files in ``run_dir/tensorboard``.

    Raises:
        ImportError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ImportError(f"logger=tensorboard needs it: {how_to_install('tensorboard')}; or choose logger=csv")
    return TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version="")


class NoLogin(UserError):
    """There is no login for Weights & Biases."""


class PatientWandbLogger(WandbLogger):
    """Lightning's wandb logger; if the server cannot be reached, the run is kept on the disk and training continues."""

    @property
    def experiment(self) -> Any:
        """The wandb run, started on first access."""
        import wandb
        from wandb.errors import CommError, UsageError

        try:
            return super().experiment
        except CommError as error:
            log.warning(
                "wandb cannot be reached (%s): the run is kept in %s/wandb; wandb sync sends it later",
                *(str(error).splitlines()[0], self.save_dir),
            )
            wandb.teardown()  # which still holds the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment
        except UsageError as error:  # a key that is none
            raise NoLogin(f"logger=wandb: {error}; or keep the run on the disk: {_OFFLINE}") from error


_OFFLINE = "offline=true (wandb sync sends it later)"


def check_login(offline: bool) -> None:
    """Check that wandb will find a login: its variables, its settings, the user's netrc file.

    Args:
        offline: True if no login is needed.

    Raises:
        ValueError: there is no login; wandb would prompt for it in the middle of the start, or fail.
    """
    import wandb

    settings = wandb.setup().settings
    if offline or settings.mode in ("offline", "dryrun", "disabled"):
        return
    host = urlsplit(settings.base_url).hostname or ""
    if settings.api_key or any(os.environ.get(f"WANDB_{name}") for name in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return
    if not any(_knows(path, host) for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        raise ValueError(
            f"logger=wandb: there is no login for {host}: run wandb login, or set WANDB_API_KEY; or keep the run on "
            f"the disk: {_OFFLINE}; or choose logger=csv"
        )


def _knows(path: str | None, host: str) -> bool:
    """Return whether a netrc file has a password for a host."""
    if not path:
        return False
    try:
        return netrc.netrc(os.path.expanduser(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@buildable
def wandb_logger(
    run_dir: str | Path,
    project: str = "d2v",
    name: str | None = None,
    offline: bool = False,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
) -> WandbLogger:
    """Build a Weights & Biases logger; the id in the run's folder resumes its run together with ours.

    Training does not depend on the server: see :class:`PatientWandbLogger`.

    Args:
        run_dir: folder of the run.
        project: wandb project.
        name: wandb run name.
        offline: keep the run on the disk, for ``wandb sync``.
        entity: user or team.
        group: group of runs.
        job_type: type of the run within the group.
        tags: tags of the run.
        notes: notes on the run.

    Raises:
        ImportError: wandb is not installed.
        ValueError: there is no login.
    """
    if find_spec("wandb") is None:
        raise ImportError(f"logger=wandb needs wandb: {how_to_install('wandb')}; or choose logger=csv")
    check_login(offline)
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "wandb_id.txt"
    run_id = id_file.read_text(encoding="utf-8", errors="replace").strip() if id_file.exists() else ""
    if not re.fullmatch(r"[\w.-]{1,64}", run_id):
        if id_file.exists():
            log.warning("%s holds no id of a wandb run: starting a new one", id_file)
        run_id = uuid.uuid4().hex[:8]
        replace_text(id_file, f"{run_id}\n")
    return PatientWandbLogger(
        save_dir=str(folder),
        project=project,
        name=name,
        offline=offline,
        id=run_id,
        resume="allow",
        entity=entity,
        group=group,
        job_type=job_type,
        tags=tags,
        notes=notes,
    )
