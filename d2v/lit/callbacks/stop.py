"""Stopping a run before its last step: when told to by a signal, and after ``trainer.max_time``."""

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
    """Ends a run between two micro-batches, as if the optimizer step under way had not begun.

    SIGTERM, SIGHUP and the first Ctrl-C are answered at once. The gradients of an unfinished optimizer step are
    dropped: what is saved is the state after the last finished one, and the resumed run does that step again. In a
    Slurm job SIGUSR1 and SIGUSR2 do the same and mean that the job is to be requeued. A Ctrl-C after another signal
    quits without saving.

    Ranks agree after every micro-batch on CPUs, after every tenth on GPUs.

    Args:
        max_time: stop after so long, counted from the start of this process's training; None: never.

    Attributes:
        reason: "signal" or "max_time" once the run has been stopped, the same on all ranks; None before.
        requeue: whether any rank was told to have the job requeued; the same on all.
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
        """The reason in words; empty if the run was not stopped."""
        if self.reason == "max_time":
            return f"trainer.max_time={self.max_time}"
        return "" if self._signal is None else _name(self._signal)

    def on_train_start(self, trainer: L.Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and take over the signals."""
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
        """Stop if it is time, on all ranks together."""
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
        """Return whether this process has been told to stop, or its time is up."""
        return self._signals is not None and (self._signals.received is not None or self._is_late())

    def _is_late(self) -> bool:
        return self.max_time is not None and time.monotonic() - self._started_at >= self.max_time.total_seconds()

    def on_fit_end(self, trainer: L.Trainer, pl_module: LightningModule) -> None:
        """Give the signals back when everything has been saved."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        if self._signals is not None:
            self._signals.stop()


def agree(trainer: L.Trainer, batch_idx: int, mine: tuple[float, ...]) -> list[float]:
    """Ranks have clocks and signals of their own, and stopping is something they do together: one says, all do.

    Args:
        trainer: of the run.
        batch_idx: the micro-batch that has just ended.
        mine: this rank's votes.

    Returns:
        The highest vote of any rank for each; zeros where it is not yet time to ask.
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
    """The trainer's callback of this kind."""
    return next(c for c in trainer.callbacks if isinstance(c, StopWhenTold))  # type: ignore[attr-defined]


def parse_time(text: str | None) -> timedelta | None:
    """``trainer.max_time``: days, hours, minutes, seconds.

    Raises:
        ValueError: it is written otherwise, or is no time at all.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d{1,2}):(\d{1,2}):(\d{1,2})", str(text))
    if found is None:
        raise ValueError(f"trainer.max_time={text}: write DD:HH:MM:SS, such as 00:11:30:00 for eleven and a half hours")
    days, hours, minutes, seconds = map(int, found.groups())
    if hours > 23 or minutes > 59 or seconds > 59 or not (days or hours or minutes or seconds):
        raise ValueError(f"trainer.max_time={text}: is no time; DD:HH:MM:SS, such as 00:11:30:00, with HH up to 23")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _name(number: signal.Signals) -> str:
    return "Ctrl-C" if number == signal.SIGINT else number.name


def _again(number: signal.Signals) -> str:
    return " again" if number == signal.SIGINT else ""
