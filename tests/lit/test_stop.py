"""Runs that are stopped before their last step: at once, as if the step under way had not begun, and in words."""

from __future__ import annotations

import itertools
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from d2v.lit.callbacks import stop
from d2v.lit.callbacks.checkpoint import CheckpointEvery
from d2v.lit.callbacks.health import HealthMonitor
from d2v.lit.callbacks.stop import agree, find_stop, parse_time
from d2v.lit.signals import StopSignals
from d2v.models.data2vec2 import Data2Vec2
from d2v.types import Batch, LossOutput

FORWARD = Data2Vec2.forward
HALVES = [
    "micro_batch_size=2",
    "callbacks.checkpoint.every_n_steps=100",
    "callbacks.health.window=6",
    "schedule.min_factor=1",  # the same of runs of any length
]


def at_micro_batch(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], Any]) -> None:
    """In the forward pass of this micro-batch (the first is 1), do something."""
    micro_batches = itertools.count(1)

    def forward(model: Data2Vec2, batch: Batch) -> LossOutput:
        if next(micro_batches) == number:
            action()
        return FORWARD(model, batch)

    monkeypatch.setattr(Data2Vec2, "forward", forward)


@pytest.fixture(scope="module")
def whole(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    return runs.pretrain(tmp_path_factory.mktemp("whole"), *HALVES, *runs.NOISE)


@pytest.fixture(scope="module")
def two(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that ends after the second step."""
    return runs.pretrain(tmp_path_factory.mktemp("two"), *HALVES, *runs.NOISE, "trainer.max_steps=2")


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_in_the_middle_of_a_step_it_is_as_if_the_step_had_not_begun(
    runs: ModuleType,
    whole: Path,
    two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    status: int,
    name: str,
) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    command = ["pretrain", f"hydra.run.dir={tmp_path / 'run'}", *runs.TINY, *HALVES, *runs.NOISE]
    with monkeypatch.context() as context:  # the first of the third step's two
        at_micro_batch(context, 5, lambda: signal.raise_signal(number))
        result = runs.d2v_command(*command)
    run = tmp_path / "run"
    assert result.status == status, result.err
    again = " again" if number == signal.SIGINT else ""
    assert f"d2v: {name}: stopping after this step at the latest; Ctrl-C{again} to quit now\n" in result.err
    assert f"stopped by {name} after step 2 of 4\nto go on: d2v pretrain resume={run}\n" in result.out
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert runs.checkpoints(run) == ["step-00000002.ckpt"]
    stopped, ended = runs.load(run, 2), runs.load(two, 2)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step"):
        assert not runs.differences(stopped[part], ended[part]), part
    counts = [file["loops"]["fit_loop"]["epoch_loop.batch_progress"] for file in (stopped, ended)]
    assert [counts[0][part] for part in ("total", "current")] == [counts[1][part] for part in ("total", "current")]
    result = runs.d2v_command(*command, f"resume={run}")
    assert result.status in (0, None), result.err
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not runs.differences(runs.load(run, 4)[part], runs.load(whole, 4)[part])
    logged = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in runs.metrics(r)] for r in (run, whole)
    ]
    assert logged[0] == logged[1]


def test_the_time_is_up_between_two_micro_batches(
    runs: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted from the start of the command: the run that goes on has the whole time again."""
    times = ["trainer.max_time=00:00:01:00"]
    command = ["pretrain", f"hydra.run.dir={tmp_path / 'run'}", *runs.TINY, *HALVES, *runs.NOISE, *times]
    clock = [0.0]
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def pass_a_minute() -> None:
        clock[0] += 60

    for micro_batch in (5, 2):  # the third step's first, then again the third step's, its second
        with monkeypatch.context() as context:
            at_micro_batch(context, micro_batch, pass_a_minute)
            result = runs.d2v_command(*command, *(["resume=auto"] if micro_batch == 2 else []))
        assert result.status == 75, result.err
        step = 2 if micro_batch == 5 else 3
        assert f"stopped by trainer.max_time=0:01:00 after step {step} of 4" in result.out
        assert runs.checkpoints(tmp_path / "run")[-1] == f"step-{step:08d}.ckpt"
    result = runs.d2v_command(*command, f"resume={tmp_path / 'run'}")
    assert result.status in (0, None), result.err
    assert not runs.differences(runs.load(tmp_path / "run", 4)["state_dict"], runs.load(whole, 4)["state_dict"])


def test_time_that_is_up_at_the_last_step_stops_nothing(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    at_micro_batch(monkeypatch, 4, lambda: clock.append(clock.pop() + 60))
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_time=00:00:01:00")
    assert result.status in (0, None), result.err
    assert "stopped" not in result.out


def test_a_second_ctrl_c_ends_the_run_at_once(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    at_micro_batch(monkeypatch, 1, twice)
    result = runs.d2v_command("pretrain", f"hydra.run.dir={tmp_path / 'run'}", *runs.TINY)
    assert result.status == 130
    assert "d2v: quitting now" in result.err
    assert "Traceback" not in result.err
    assert signal.getsignal(signal.SIGINT) == handler
    assert not list(tmp_path.glob("run/checkpoints/*"))


LONG_CALL = """
import hashlib, sys
from d2v.lit.signals import StopSignals
signals = StopSignals(lambda number: f"answer to {number.name}")
signals.start()
def call():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in one call, as of a backward pass
try:
    print("ready", flush=True)
    call()
except KeyboardInterrupt:  # both signals came before the call began
    call()
"""


def test_a_long_call_delays_no_answer_and_no_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "answer to SIGINT\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "d2v: quitting now\n"
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.communicate()


def test_slurms_signal_stays_the_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    signals = StopSignals(lambda number: number.name)
    signals.start()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        signal.raise_signal(number)
    signals.stop()
    assert signals.received == signal.SIGUSR1
    assert capsys.readouterr().err == "SIGUSR1\n"


def test_torchrun_says_a_ctrl_c_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    signals = StopSignals(lambda number: None)
    signals.start()
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
    signals.stop()
    assert signals.received == signal.SIGINT


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = StopSignals(lambda number: None)
        signals.start()
        signal.raise_signal(signal.SIGHUP)
        signals.stop()
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


GONE = """
import os, sys
from d2v.terminal import say
sys.stdin.readline()
for i in range(3):
    say(f"line {i}", "stdout")
    say(f"line {i}")
print("the interpreter's own flush")
"""


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_nobody_reads_any_longer(kind: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", GONE], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.close(ours)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0


class Ranks:
    """A trainer of two ranks, of which the other votes as it likes."""

    def __init__(self, other: tuple[float, ...], device: str) -> None:
        self.world_size = 2
        self.asked = 0
        self.other = torch.tensor(other)
        self.strategy = SimpleNamespace(root_device=SimpleNamespace(type=device), reduce=self.reduce)

    def reduce(self, votes: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        self.asked += 1
        return torch.maximum(votes, self.other)


@pytest.mark.parametrize(("device", "asked"), [("cpu", 20), ("cuda", 2)])
def test_ranks_agree_where_it_costs_little(device: str, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, device=None, **options: make(data, **options))
    ranks: Any = Ranks((15.0, 0.0), device)
    votes = [agree(ranks, batch_idx, (0, True)) for batch_idx in range(20)]
    assert ranks.asked == asked
    assert [vote for vote in votes if any(vote)] == [[15.0, 1.0]] * asked
    assert any(votes[9])


def test_metrics_and_health_of_an_abandoned_step_are_dropped() -> None:
    monitor, trainer = HealthMonitor(window=4), SimpleNamespace(accumulate_grad_batches=2, log_every_n_steps=9)
    trainer.global_step, trainer.max_steps = 3, 9
    monitor.check_every_n_steps = 100
    for i in range(5):
        features = torch.full((2, 3), float(i))
        monitor.on_train_batch_end(trainer, SimpleNamespace(), {"watched": {"features": features}}, None, i)  # type: ignore[arg-type]
    assert [int(f[0, 0]) for f in monitor.state_dict()["windows"]["features"]] == [2, 3]


def test_told_before_the_first_step(runs: ModuleType, tmp_path: Path) -> None:
    """Lightning notes a SIGTERM while the run is being set up."""

    class Told(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer._signal_connector.received_sigterm = True

    fit = runs.fit(callbacks=[Told(), CheckpointEvery(tmp_path)])
    told = find_stop(fit.trainer)
    assert (fit.trainer.global_step, told.reason, told.status) == (1, "signal", 143)
    assert runs.checkpoints(tmp_path) == ["step-00000001.ckpt"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:00:15", 15), ("1:02:03:04", 93784), ("00:00:01:00", 60), (None, None)]
)
def test_times(text: str | None, seconds: int | None) -> None:
    assert parse_time(text) == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "text", ["15", "01:00", "00:00:15", "00:24:00:00", "00:00:60:00", "00:00:00:00", "soon", "", 15]
)
def test_no_times(text: Any) -> None:
    with pytest.raises(ValueError, match=rf"^max_time={re.escape(str(text))}: .*DD:HH:MM:SS"):
        parse_time(text)


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_terminal_that_is_closed(runs: ModuleType, tmp_path: Path) -> None:
    """SIGHUP, and nobody to read: the run is saved and ends with its status."""
    ours, theirs = pty.openpty()
    command = ["pretrain", f"hydra.run.dir={tmp_path / 'run'}", *runs.TINY, "trainer.max_steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "d2v.cli.main", *command], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(theirs)
    try:
        seen = b""
        while b"/100000" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        time.sleep(0.2)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 129
    finally:
        process.kill()
        process.wait()
    assert len(runs.checkpoints(tmp_path / "run")) == 1
