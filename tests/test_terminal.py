"""How far a long loader is, said now and then; tests/lit/test_stop.py closes the terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from d2v import terminal


class Loader:
    """Ten batches of four samples, ``seconds`` apart."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.dataset = range(40)
        self.clock, self.seconds = clock, seconds

    def __iter__(self) -> Any:
        for _ in range(10):
            self.clock[0] += self.seconds
            yield SimpleNamespace(sample_ids=range(4))


@pytest.mark.parametrize(
    ("seconds", "tty", "lines"),
    [
        (0.1, False, []),
        (0.1, True, []),
        (5.0, False, []),
        (
            20.0,
            False,
            [f"{4 * i} of 40 samples, 0:0{(200 - 20 * i) // 60}:20 left" for i in (3, 6, 9)],
        ),
        (2.0, True, [f"{4 * i} of 40 samples, 0:00:{2 * (10 - i):02d} left" for i in range(2, 11)]),
    ],
)
def test_what_is_said_of_a_loader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, tty: bool, lines: list[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: tty, raising=False)
    batches = list(terminal.watched(Loader(clock, seconds), "scoring val"))
    assert len(batches) == 10
    said = capsys.readouterr().err
    if tty and lines:
        assert said == "".join(f"\r\x1b[Kscoring val: {line}" for line in lines) + "\r\x1b[K"
    else:
        assert said == "".join(f"scoring val: {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("tty", "said"), [(True, "\r\x1b[Kfitting\r\x1b[K83 %\n\r\x1b[Kmore\r\x1b[K"), (False, "83 %\n")]
)
def test_the_status_line_is_replaced_on_a_terminal_and_only_results_stay_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tty: bool, said: str
) -> None:
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: tty, raising=False)
    with terminal.StatusLine() as status:
        status.tell("fitting")
        status.done("83 %")
        status.tell("more")
    assert capsys.readouterr().err == said
