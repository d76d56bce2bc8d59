"""Parts of a benchmark within a budget of time: each is measured, fails, or is left out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["measured", "failed", "left out"]
ERROR_LINES = 30  # of a command that failed
_running: set[int] = set()  # process groups of commands


class CommandError(Exception):
    """A command ended with an error; the message has its last lines."""


class TimeIsUpError(Exception):
    """A command was stopped because its time was up."""


class LeftOutError(Exception):
    """A part does not apply to this machine; the message says why."""


def end_with_commands() -> None:
    """From now on SIGTERM ends this process and the commands that it runs, which it would outlive otherwise."""

    def end(number: int, frame: object) -> None:
        for group in list(_running):
            _kill(group)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class Commands:
    """Runs commands until a deadline, one after the other, each in a process group of its own.

    Args:
        seconds: until the deadline; None for no deadline.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """Return what a command prints on standard output.

        Args:
            command: its words.
            environment: variables in addition to those of this process.

        Raises:
            CommandError: it ended with another exit status than 0.
            TimeIsUpError: it ran past the deadline. It and its children are gone then.
        """
        process = subprocess.Popen(
            list(command),
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        _running.add(process.pid)
        try:
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            output, errors = process.communicate(timeout=left)
        except BaseException as error:
            _kill(process.pid)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeIsUpError from error
            raise
        finally:
            _running.discard(process.pid)
        if process.returncode:
            last = "\n".join((output + errors).strip().splitlines()[-ERROR_LINES:])
            raise CommandError(f"exit status {process.returncode}: {' '.join(command)}\n{last}")
        return output


@dataclass(frozen=True)
class Part:
    """A part of a benchmark.

    Attributes:
        name: for people.
        measure: returns the result; runs its commands by the argument.
        at_least: seconds without which it is not begun.
        at_most: seconds after which it has failed.
    """

    name: str
    measure: Callable[[Commands], dict[str, Any]]
    at_least: float
    at_most: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its name.
        status: "measured", "failed" or "left out".
        seconds: that it took.
        reason: why there is no result.
        result: of a part that was measured.
    """

    part: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def run_parts(parts: Sequence[Part], budget: float, report: Callable[[Sequence[Outcome]], None]) -> list[Outcome]:
    """Measure the parts in order, as many as fit.

    Args:
        parts: the most important ones first.
        budget: seconds for all of them.
        report: is given all outcomes so far after each part, so that nothing measured is lost.

    Returns:
        One outcome for each part. An error of a part is in its outcome, and the next part is measured.
    """
    start, outcomes = time.monotonic(), list[Outcome]()
    for part in parts:
        outcomes.append(_outcome(part, budget - (time.monotonic() - start), budget))
        report(outcomes)
    return outcomes


def _outcome(part: Part, left: float, budget: float) -> Outcome:
    if left < part.at_least:
        reason = f"needs {part.at_least:.0f} s, of the budget of {budget:.0f} s {max(0.0, left):.0f} s were left"
        return Outcome(part.name, "left out", reason=reason)
    start = time.monotonic()

    def ended(status: Status, reason: str = "", result: dict[str, Any] | None = None) -> Outcome:
        return Outcome(part.name, status, time.monotonic() - start, reason, result or {})

    try:
        return ended("measured", result=part.measure(Commands(min(left, part.at_most))))
    except LeftOutError as error:
        return ended("left out", str(error))
    except TimeIsUpError:
        if left < part.at_most:
            return ended("left out", f"the budget of {budget:.0f} s ended {left:.0f} s after it had begun")
        return ended("failed", f"took longer than {part.at_most:.0f} s")
    except Exception as error:
        return ended("failed", f"{type(error).__name__}: {error}")
