"""Messages of a long run to its terminal, which may be closed meanwhile."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import Literal


def say(text: str, stream: Literal["stdout", "stderr"] = "stderr") -> None:
    """Print a line; without anybody to read it, for the rest of the process, nothing.

    Args:
        text: without the line's end.
        stream: where to.
    """
    try:
        print(text, file=getattr(sys, stream), flush=True)
    except (OSError, ValueError):  # a terminal or pipe that is gone, a file that is closed
        drop_what_nobody_reads()


def drop_what_nobody_reads() -> None:
    """Lead standard output and error into nothing where their terminal or pipe is gone, so that no print raises."""
    for descriptor in (1, 2):
        if _is_gone(descriptor):
            nothing = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):
                os.dup2(nothing, descriptor)
            os.close(nothing)


def _is_gone(descriptor: int) -> bool:
    """Whether the other side has hung up."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    events = [event for _, event in poll.poll(0)]
    return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for event in events)
