"""Early stop of a run: on a signal, and after ``max_time``."""

from __future__ import annotations

import logging
import re
import signal
import time
from datetime import timedelta
from typing import Literal

import lightning as L
import torch
from lightning.pytorch import LightningModule

from d2v.lit.module import TrainingModule
from d2v.lit.signals import REQUEUE, StopSignals
from d2v.lit.steps import ends_step

log = logging.getLogger(__name__)

TIME_IS_UP = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, may succeed
_AGREE_EVERY = 10  # micro-batches: asking the other ranks takes the time of waiting for a GPU


class StopWhenTold(L.Callback):
    """Stops a run between two micro-batches, as if the current optimizer step had not begun.

    SIGTERM, SIGHUP and the first Ctrl-C are acknowledged at once. The gradients of an unfinished optimizer step are
    dropped: the checkpoint holds the state after the last finished step, and the resumed run repeats the unfinished
    one. In a Slurm job SIGUSR1 and SIGUSR2 do the same and request that the job is requeued. A Ctrl-C after another
    signal quits without saving.

    Ranks exchange signals after every micro-batch on CPUs, after every tenth on GPUs.

    Args:
        max_time: duration after which to stop, from the start of training in this process; None: never.

    Attributes:
        reason: "signal" or "max_time" once the run is stopped, the same on all ranks; None before.
        requeue: whether any rank received a request to requeue the job; the same on all.
    """

    def __init__(self, max_time: timedelta | None = None) -> None:
        self.max_time = max_time
        self.reason: Literal["signal", "max_time"] | None = None
        self.requeue = False
        self._signal: signal.Signals | None = None
        self._started_at = 0.0
        self._signals: StopSignals | None = None

    @property
    def status(self) -> int:
        """Exit status of the process: 0, 128 + the signal's number as in shells, or 75 after ``max_time``."""
        if self.reason == "max_time":
            return TIME_IS_UP
        return 0 if self._signal is None else 128 + self._signal

    @property
    def cause(self) -> str:
        """Reason of the stop in words; empty if the run was not stopped."""
        if self.reason == "max_time":
            return f"max_time={self.max_time}"
        return "" if self._signal is None else _name(self._signal)

    def on_train_start(self, trainer: L.Trainer, pl_module: LightningModule) -> None:
        """Start the clock and install the signal handlers."""
        self._started_at = time.monotonic()

        def answer(number: signal.Signals) -> str | None:
            if not trainer.is_global_zero:
                return None
            step = "this step" if trainer.accumulate_grad_batches == 1 else "this step at the latest"
            return f"d2v: {_name(number)}: stopping after {step}; Ctrl-C{_again(number)} to quit now"

        self._signals = StopSignals(answer)
        if trainer.received_sigterm:  # by Lightning's handler, while the run was being set up
            trainer._signal_connector.received_sigterm = False
            self._signals.received = signal.SIGTERM
        self._signals.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Stop, on all ranks together, after a signal or ``max_time``."""
        assert self._signals is not None
        told = self._signals.received
        number, requeue, is_late = agree(trainer, batch_idx, (told or 0, told in REQUEUE, self._is_late()))
        if not number and (not is_late or trainer.global_step >= trainer.max_steps):
            return
        self.reason, self.requeue = "signal" if number else "max_time", bool(requeue)
        self._signal = signal.Signals(int(number)) if number else None
        dropped = 0 if ends_step(trainer, batch_idx) else batch_idx % trainer.accumulate_grad_batches + 1
        if dropped:
            assert isinstance(pl_module, TrainingModule)
            pl_module.abandon_step()
        unfinished = f"; {dropped} micro-batches of the next are dropped" if dropped else ""
        log.info("stopping after step %d%s", trainer.global_step, unfinished)
        trainer.should_stop = True

    def is_told(self) -> bool:
        """Return whether this process has received a signal, or its time is up."""
        return self._signals is not None and (self._signals.received is not None or self._is_late())

    def _is_late(self) -> bool:
        return self.max_time is not None and time.monotonic() - self._started_at >= self.max_time.total_seconds()

    def on_fit_end(self, trainer: L.Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers after everything has been saved."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._give_back()

    def _give_back(self) -> None:
        if self._signals is not None:
            self._signals.stop()


def agree(trainer: L.Trainer, batch_idx: int, mine: tuple[float, ...]) -> list[float]:
    """Exchange votes among ranks, which have their own clocks and signals but must stop together.

    Args:
        trainer: trainer of the run.
        batch_idx: index of the last micro-batch.
        mine: votes of this rank.

    Returns:
        The highest vote of all ranks for each; zeros if the exchange is not due.
    """
    if trainer.world_size == 1:
        return list(mine)
    device = trainer.strategy.root_device
    if device.type != "cpu" and (batch_idx + 1) % _AGREE_EVERY:
        return [0.0] * len(mine)
    votes = torch.tensor(mine, dtype=torch.float32, device=device)
    highest: list[float] = trainer.strategy.reduce(votes, reduce_op="max").tolist()
    return highest


def find_stop(trainer: L.Trainer) -> StopWhenTold:
    """Return the trainer's callback of this class."""
    return next(c for c in trainer.callbacks if isinstance(c, StopWhenTold))  # type: ignore[attr-defined]


def parse_time(text: str | None) -> timedelta | None:
    """Parse ``max_time``: days, hours, minutes, seconds.

    Raises:
        ValueError: the text has another form, or is zero.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d{1,2}):(\d{1,2}):(\d{1,2})", str(text))
    if match is None:
        raise ValueError(f"max_time={text}: write DD:HH:MM:SS, such as 00:11:30:00 for eleven and a half hours")
    days, hours, minutes, seconds = map(int, match.groups())
    if hours > 23 or minutes > 59 or seconds > 59 or not (days or hours or minutes or seconds):
        raise ValueError(f"max_time={text}: is no time; DD:HH:MM:SS, such as 00:11:30:00, with HH up to 23")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _name(number: signal.Signals) -> str:
    return "Ctrl-C" if number == signal.SIGINT else number.name


def _again(number: signal.Signals) -> str:
    return " again" if number == signal.SIGINT else ""
