"""Messages of a long command to a terminal that may be closed in the meantime."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal


def say(text: str, stream: Literal["stdout", "stderr"] = "stderr") -> None:
    """Print a line; if the terminal or pipe is closed, drop this and all later output.

    Args:
        text: line to print, without its line end.
        stream: standard output or standard error.
    """
    try:
        print(text, file=getattr(sys, stream), flush=True)
    except (OSError, ValueError):  # closed terminal, pipe or file
        drop_what_nobody_reads()


def drop_what_nobody_reads() -> None:
    """Redirect standard output and error to the null device if their terminal or pipe is closed, so no print raises."""
    for descriptor in (1, 2):
        if _is_gone(descriptor):
            nothing = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):
                os.dup2(nothing, descriptor)
            os.close(nothing)


def _is_gone(descriptor: int) -> bool:
    """Return whether the other end of a descriptor is closed."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    events = [event for _, event in poll.poll(0)]
    return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for event in events)


_PATIENCE_S, _ON_TERMINAL_S, _ELSEWHERE_S = 3.0, 0.5, 60.0


def watched(loader: Any, what: str) -> Iterator[Any]:
    """Yield the batches of a loader; show progress on standard error if it takes longer than a few seconds.

    A terminal shows one line, updated twice a second; other outputs (a file, a cluster's log) get a line a minute.

    Args:
        loader: data loader of batches with ``sample_ids``, from a ``dataset`` of known length.
        what: name of the activity, such as "scoring val".
    """
    shows, started_at = sys.stderr.isatty(), time.monotonic()
    every_s = _ON_TERMINAL_S if shows else _ELSEWHERE_S
    total, done, told_at = len(loader.dataset), 0, None
    for batch in loader:
        yield batch
        done += len(batch.sample_ids)
        now = time.monotonic()
        if now - started_at < _PATIENCE_S or (told_at is not None and now - told_at < every_s):
            continue
        if told_at is None and not shows and now - started_at < every_s:
            continue
        told_at = now
        left = timedelta(seconds=round((now - started_at) * max(0, total - done) / max(1, done)))
        line = f"{what}: {done:,} of {total:,} samples, {left} left"
        _overwrite(line) if shows else say(line)
    if shows and told_at is not None:
        _overwrite("")


class StatusLine:
    """Line on standard error that says what a long command does now.

    A terminal shows and replaces it; other outputs get only the lines of :meth:`done`. As a context manager it clears
    the terminal's line at the end.
    """

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *error: object) -> None:
        if sys.stderr.isatty():
            _overwrite("")

    def tell(self, line: str) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            _overwrite(line)

    def done(self, line: str) -> None:
        """Print a line that stays."""
        if sys.stderr.isatty():
            _overwrite("")
        say(line)


def _overwrite(line: str) -> None:
    """Replace the terminal's last line."""
    try:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop_what_nobody_reads()
