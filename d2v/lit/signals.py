"""Signals that ask a run to stop: a thread answers them at once, the training loop obeys between micro-batches.

Python's own handlers wait for the call under way, and a backward pass on a CPU may take a minute. The number of a
signal also arrives in a socket (``signal.set_wakeup_fd``), which a thread reads meanwhile.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from d2v.terminal import drop_what_nobody_reads, say

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # what Slurm is asked to send ahead of the time limit
_GRACE_S = 3.0  # for a second Ctrl-C to end the call under way
_TWICE_S = 2.0  # torchrun hands on a Ctrl-C that the terminal has sent to all of its processes already


def stop_signals() -> tuple[signal.Signals, ...]:
    """Signals that stop a run here; under ``nohup`` SIGHUP is ignored, and stays so."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return (*numbers, *(REQUEUE if "SLURM_JOB_ID" in os.environ else ()))


class StopSignals:
    """Handles the signals that stop a run, between :meth:`start` and :meth:`stop`.

    A Ctrl-C after another signal raises KeyboardInterrupt in the main thread; if that is in a long call, the process
    ends after three seconds with status 130.

    Args:
        answer: the line to print for the first signal; None: print nothing.

    Attributes:
        received: the signal to obey; None before there is one.
    """

    def __init__(self, answer: Callable[[signal.Signals], str | None]) -> None:
        self.answer = answer
        self.received: signal.Signals | None = None
        self._handled, self._answered = _Sequence(), _Sequence()
        self._quit = threading.Event()
        self._raised = False
        self._stopped = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self._wakeup: tuple[socket.socket, int] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the signals over; outside the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is not threading.main_thread() or self._thread is not None:
            return
        self._stopped.clear()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._wakeup = theirs, signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._read, args=(ours,), name="d2v-signals", daemon=True)
        for number in stop_signals():
            self._previous[number] = signal.signal(number, self._handle)
        self._thread.start()

    def stop(self) -> None:
        """Give the signals back; every answer has been printed then."""
        if self._wakeup is None or self._thread is None:
            return
        while self._previous:
            number, handler = self._previous.popitem()
            if signal.getsignal(number) == self._handle:  # else Lightning has put back what was there before the run
                signal.signal(number, handler)
        theirs, before = self._wakeup
        signal.set_wakeup_fd(before)
        self._stopped.set()
        theirs.close()
        self._thread.join()
        self._wakeup = self._thread = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between two of Python's instructions; several signals may have become one."""
        again = self._handled.ends_with_again(signal.Signals(number))
        self._obey(signal.Signals(number))
        if (again or self._quit.is_set()) and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _obey(self, number: signal.Signals) -> None:
        if self.received is None or (number != signal.SIGINT and self.received not in REQUEUE):
            self.received = number  # a SIGTERM that follows Slurm's signal changes nothing

    def _read(self, inbox: socket.socket) -> None:
        with inbox:
            while numbers := inbox.recv(64):
                for number in numbers:
                    if number in stop_signals():
                        self._answer(signal.Signals(number))

    def _answer(self, number: signal.Signals) -> None:
        first = self._answered.first is None
        again = self._answered.ends_with_again(number)
        if number == signal.SIGHUP:
            drop_what_nobody_reads()
        if first:
            self._obey(number)
            text = self.answer(number)
            if text is not None:
                say(text)
        if again and not self._quit.is_set():
            self._quit.set()
            say("d2v: quitting now")
            _thread.interrupt_main()
            if not self._stopped.wait(_GRACE_S):
                _die()


class _Sequence:
    """Signals in the order in which one of the two threads sees them."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._first_at = 0.0

    def ends_with_again(self, number: signal.Signals) -> bool:
        """Add a signal; return whether it is a Ctrl-C of somebody who does not want to wait."""
        if self.first is None:
            self.first, self._first_at = number, time.monotonic()
            return False
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first_at < _TWICE_S
        return number == signal.SIGINT and not by_torchrun


def _die() -> None:
    """End the process from another thread than the one that does not."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    os._exit(128 + signal.SIGINT)
