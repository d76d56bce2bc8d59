"""Stop signals: a thread acknowledges them at once, and the training loop stops between micro-batches.

Python's signal handlers wait for the current call, and a backward pass on a CPU may take a minute. The number of a
signal is also written to a socket (``signal.set_wakeup_fd``), which a thread reads.
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

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # sent by Slurm ahead of the time limit
_GRACE_S = 3.0  # time for a second Ctrl-C to end the current call
_TWICE_S = 2.0  # torchrun hands on a Ctrl-C that the terminal has sent to all of its processes already


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a run; under ``nohup`` SIGHUP stays ignored."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return (*numbers, *(REQUEUE if "SLURM_JOB_ID" in os.environ else ()))


class StopSignals:
    """Handler of the signals that stop a run, between :meth:`start` and :meth:`stop`.

    A Ctrl-C after another signal raises KeyboardInterrupt in the main thread; if that is in a long call, the process
    ends after three seconds with status 130.

    Args:
        answer: returns the line to print for the first signal; None to print nothing.

    Attributes:
        received: first signal; None before there is one.
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
        """Install the handlers; outside the main thread, where Python allows none, do nothing."""
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
        """Restore the previous handlers, after all answers have been printed."""
        if self._wakeup is None or self._thread is None:
            return
        while self._previous:
            number, handler = self._previous.popitem()
            if signal.getsignal(number) == self._handle:  # else Lightning has already restored the old handlers
                signal.signal(number, handler)
        theirs, before = self._wakeup
        signal.set_wakeup_fd(before)
        self._stopped.set()
        theirs.close()
        self._thread.join()
        self._wakeup = self._thread = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread; Python may merge several signals into one call."""
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
    """Sequence of signals as seen by one of the two threads."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._first_at = 0.0

    def ends_with_again(self, number: signal.Signals) -> bool:
        """Add a signal; return whether it is a Ctrl-C after another signal, which means to quit now."""
        if self.first is None:
            self.first, self._first_at = number, time.monotonic()
            return False
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first_at < _TWICE_S
        return number == signal.SIGINT and not by_torchrun


def _die() -> None:
    """End the process from the thread that reads the socket."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # show the cursor, which a progress bar has hidden
    os._exit(128 + signal.SIGINT)
