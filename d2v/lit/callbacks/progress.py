"""Progress on the terminal: loss, samples per second, share of time waiting for data, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from d2v.lit.data import ResumableDataModule
from d2v.lit.module import TrainingModule
from d2v.lit.steps import ends_step, is_logged_step
from d2v.terminal import drop_what_nobody_reads, say
from d2v.values import buildable


@buildable
class Throughput(L.Callback):
    """Logs ``perf/{steps_per_s,samples_per_s,data_wait_fraction}`` since the last logged step, over all ranks.

    Only steps and waiting for batches count, not other callbacks (checkpoints, probes): put this one first.
    """

    def __init__(self) -> None:
        self._step_s = 0.0
        self._wait_s = 0.0
        self._samples = 0
        self._micro_batches = 0
        self._started_at = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._started_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up a micro-batch; log when metrics are logged."""
        self._step_s += time.perf_counter() - self._started_at
        self._samples += len(batch.inputs) * trainer.world_size
        self._micro_batches += 1
        if is_logged_step(trainer, batch_idx):
            total_wait_s = _total_wait_s(trainer)
            wait_s = total_wait_s - self._wait_s
            total_s = self._step_s + wait_s
            pl_module.log("perf/steps_per_s", self._micro_batches / trainer.accumulate_grad_batches / total_s)
            pl_module.log("perf/samples_per_s", self._samples / total_s)
            pl_module.log("perf/data_wait_fraction", wait_s / total_s)
            self._step_s, self._samples, self._micro_batches, self._wait_s = 0.0, 0, 0, total_wait_s


def _total_wait_s(trainer: L.Trainer) -> float:
    datamodule = getattr(trainer, "datamodule", None)
    loader = datamodule.loader if isinstance(datamodule, ResumableDataModule) else None
    return loader.wait_s if loader is not None else 0.0


@buildable
class ProgressReport(ProgressBar):
    """Progress bar on a terminal; elsewhere (file, pipe, cluster log) one line for each logged, scored or probed step.

    A line holds only values of its own step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._first_step = 0
        self._started_at = 0.0

    def disable(self) -> None:
        """Print nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the bar on a terminal."""
        self._first_step, self._started_at = trainer.global_step, time.monotonic()
        if self._enabled and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by an optimizer step."""
        if not self._enabled or not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        assert isinstance(pl_module, TrainingModule)
        measured = {k: float(v) for k, v in trainer.callback_metrics.items() if pl_module.has_just_logged(k)}
        tell = is_logged_step(trainer, batch_idx) or any(k.startswith(("val/", "probe/")) for k in measured)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)
            if tell:
                at = f"step {step}: {self._status(trainer, measured)}"  # the count goes on meanwhile
                self._progress.update(self._progress.task_ids[0], description=at)
        elif tell:
            say(f"step {step}/{trainer.max_steps}  {self._status(trainer, measured)}")

    def _status(self, trainer: L.Trainer, metrics: dict[str, float]) -> str:
        """Return the values of this step, and the time left."""
        parts = [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
        if "perf/samples_per_s" in metrics:
            parts.append(f"{metrics['perf/samples_per_s']:,.0f} samples/s")
            parts.append(f"data wait {metrics['perf/data_wait_fraction']:.0%}")
        for name, title in (("probe/knn", "kNN"), ("probe/linear", "linear")):
            if name in metrics:
                parts.append(f"{title} {metrics[name]:.1%}")
        parts += [f"{name} {value:.1%}" for name, value in metrics.items() if name.startswith("val/")][:2]
        done = trainer.global_step - self._first_step
        left = (trainer.max_steps - trainer.global_step) * (time.monotonic() - self._started_at) / max(1, done)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
        return "  ".join(parts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the bar and leave it on the screen."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the terminal."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            progress, self._progress = self._progress, None
            try:
                progress.stop()
            except OSError:  # the terminal is closed
                drop_what_nobody_reads()
