"""Where metrics go: a CSV file that survives resuming, and Weights & Biases with a run that goes on."""

from __future__ import annotations

import csv
import logging
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from d2v.errors import how_to_install

log = logging.getLogger(__name__)


class CSVLogger(Logger):
    """One row a logged step in ``metrics.csv``, appended as it happens.

    Lightning's own CSV logger deletes the file when a run is resumed; this one keeps it. Steps that are done again
    after a resume appear again, later rows being the valid ones.

    Args:
        save_dir: folder of ``metrics.csv``.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Empty: the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Empty: resumed runs share the file."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of ``metrics.csv``."""
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect a step's metrics; the row is written when the next step begins."""
        if self._row and self._row["step"] != step:
            self.save()
        self._row.update(metrics, step=step)

    @rank_zero_only
    def save(self) -> None:
        """Append the pending row; rewrite the file if it brings new columns."""
        if not self._row:
            return
        if not self._columns and self._path.exists():
            content = self._path.read_bytes()
            if not content.endswith(b"\n"):  # a kill tore the last line
                self._path.write_bytes(content[: content.rfind(b"\n") + 1])
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
        try:
            self._append()
        except OSError as error:  # a full disk costs a row, and not the run
            log.error("%s: the metrics of step %s could not be written (%s)", self._path, self._row["step"], error)
        self._row = {}

    def _append(self) -> None:
        new = [key for key in self._row if key not in self._columns]
        if new:
            self._add_columns(new)
        end = self._path.stat().st_size
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._row)
        except OSError:
            os.truncate(self._path, end)  # leave no half of a row
            raise

    def _add_columns(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        columns = ["step", *sorted({*self._columns, *new} - {"step"})]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".csv.tmp")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        scratch.replace(self._path)
        self._columns = columns  # only now: a disk may be full

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending."""
        self.save()


def tensorboard_logger(save_dir: str | Path) -> TensorBoardLogger:
    """TensorBoard event files in ``save_dir/tensorboard``.

    Raises:
        ImportError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ImportError(f"logger=tensorboard needs it: {how_to_install('tensorboard')}; or choose logger=csv")
    return TensorBoardLogger(save_dir=str(save_dir), name="tensorboard", version="")


class PatientWandbLogger(WandbLogger):
    """Lightning's; where the server cannot be reached, the run is kept on the disk and training goes on."""

    @property
    def experiment(self) -> Any:
        """The wandb run, started when first asked for."""
        import wandb
        from wandb.errors import CommError

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


def wandb_logger(save_dir: str | Path, project: str = "d2v", name: str | None = None, **kwargs: Any) -> WandbLogger:
    """A Weights & Biases logger whose run is resumed with ours: its id is kept in the run's folder.

    A server that cannot be reached keeps nothing from training: see :class:`PatientWandbLogger`.

    Args:
        save_dir: the run's folder.
        project: wandb project.
        name: wandb run name.
        **kwargs: for :class:`lightning.pytorch.loggers.WandbLogger`, for example ``offline=True``.

    Raises:
        ImportError: wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise ImportError(f"logger=wandb needs wandb: {how_to_install('wandb')}; or choose logger=csv")
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8] + "\n")
    return PatientWandbLogger(
        save_dir=str(folder), project=project, name=name, id=id_file.read_text().strip(), resume="allow", **kwargs
    )
