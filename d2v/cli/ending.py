"""End of a training command: its exit status and, if it was stopped, its message."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from d2v.cli.launch import Status
from d2v.cli.slurm import requeue
from d2v.cli.words import for_the_shell
from d2v.lit.callbacks.checkpoint import CheckpointEvery
from d2v.lit.callbacks.stop import TIME_IS_UP, find_stop
from d2v.lit.signals import REQUEUE
from d2v.terminal import say

STOPPED = {TIME_IS_UP} | {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, *REQUEUE)}


def stopped_early(trainer: L.Trainer, command: str, run_dir: Path, resume: str | None, scores: bool = False) -> bool:
    """Return, after ``fit``, whether the run was stopped early; print so, and how to resume.

    Args:
        trainer: trainer after ``fit``.
        command: "pretrain" or "finetune".
        run_dir: folder of the run.
        resume: value of ``resume``.
        scores: whether the command still has to score a fully trained model.

    Raises:
        SystemExit: the run was stopped: with 0 where Slurm runs the job again, else, of the first process, with 128 +
            the signal's number, or with 75 after ``trainer.max_time``. Of several runs (``-m``) the next still begin
            after one that was stopped by ``trainer.max_time``.
    """
    stop = find_stop(trainer)
    if stop.reason is None or (trainer.global_step >= trainer.max_steps and not scores):
        return False
    if trainer.is_global_zero:
        saved = any(isinstance(c, CheckpointEvery) for c in trainer.callbacks)  # type: ignore[attr-defined]
        state = "" if saved else "; nothing was saved, for want of callbacks.checkpoint"
        cause = f"trainer.{stop.cause}" if stop.reason == "max_time" else stop.cause
        say(f"stopped by {cause} after step {trainer.global_step:,} of {trainer.max_steps:,}{state}", "stdout")
        if saved:
            say(f"to go on: {resume_command(command, run_dir)}", "stdout")
    if stop.requeue:
        requeue(resume, trainer.is_global_zero)
    status = stop.status if trainer.is_global_zero else 0  # otherwise the launcher would kill rank 0
    if stop.reason == "max_time" and HydraConfig.get().mode == RunMode.MULTIRUN:
        Status.value = status
        return True
    sys.exit(status)


def resume_command(command: str, run_dir: Path) -> str:
    """Return the shell command that resumes a run."""
    word = f"resume={run_dir}"
    is_plain = re.fullmatch(r"resume=[\w./+-]+", word)
    return f"d2v {command} {word if is_plain else for_the_shell(word)}"


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Wait for a child and return its exit status; pass SIGTERM and SIGHUP to it.

    Ctrl-C in a terminal reaches the child by itself.
    """
    with _handing_on(process):
        try:
            status = process.wait()
        except KeyboardInterrupt:
            status = process.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _handing_on(process: subprocess.Popen[Any]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
