"""What breaks on real machines: after each fault, ``resume=auto`` ends with the weights of the uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

STEPS, EVERY = 40, 2
START = "from d2v.cli.main import main; main()"
# Lines that run in the training process before it starts: the n-th torch.save does something else.
ON_SAVE = """
import os, resource, signal, torch
calls, save = 0, torch.save
def on_save(content, file, *args, **kwargs):
    global calls
    calls += 1
    {action}
    return save(content, file, *args, **kwargs)
torch.save = on_save
"""


def arguments(runs: ModuleType, output_dir: Path, *more: str) -> list[str]:
    return [
        "pretrain", f"output_dir={output_dir}", *runs.TINY, *runs.NOISE, f"trainer.max_steps={STEPS}",
        f"callbacks.checkpoint.every_n_steps={EVERY}", "callbacks.checkpoint.keep=3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    result = runs.d2v_command(*arguments(runs, tmp_path_factory.mktemp("whole")))
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


@contextlib.contextmanager
def process(command: list[str], log: Path, prelude: str = "", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of its own; none of its processes outlives the context."""
    with log.open("ab") as file:
        running = subprocess.Popen(
            [sys.executable, "-c", prelude + START, *command],
            stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(12_000):
        if condition():
            return
        assert running.poll() is None, log.read_text()
        time.sleep(0.01)
    raise AssertionError(log.read_text())


def ends_as(runs: ModuleType, whole: Path, folder: Path, *more: str) -> str:
    """Go on with ``resume=auto``, compare the end bit by bit; what the command said."""
    result = runs.d2v_command(*arguments(runs, folder, "resume=auto", *more))
    assert result.status in (0, None), result.err
    check_end(runs, whole, folder)
    return result.out + result.err


def check_end(runs: ModuleType, whole: Path, folder: Path) -> None:
    # One that was killed before its first checkpoint was whole has nothing to go on from, and stays behind.
    (run,) = {checkpoint.parents[1] for checkpoint in folder.glob("image_tiny/*/checkpoints/step-*.ckpt")}
    a, b = runs.load(whole, STEPS), runs.load(run, STEPS)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not runs.differences(a[part], b[part])
    assert not list(run.rglob(".*.part"))


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(runs: ModuleType, whole: Path, tmp_path: Path, seed: int) -> None:
    log, rng = tmp_path / "log", random.Random(seed)
    for kill in range(3):
        with process(arguments(runs, tmp_path, "resume=auto"), log) as running:
            first = log.stat().st_size
            wait_for(lambda first=first: b"step " in log.read_bytes()[first:], running, log)
            time.sleep(rng.uniform(0, 0.3))
            killed = running.poll() is None
        assert killed or kill, log.read_text()
    ends_as(runs, whole, tmp_path)


def test_killed_pretraining_and_fine_tuning_keep_their_best(tmp_path: Path) -> None:
    """The short form of what the documentation tells to run for a hundred kills."""
    script = Path(__file__).parents[2] / "scripts" / "prove_kills.py"
    result = subprocess.run(
        [sys.executable, str(script), "--kills", "6"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for command in ("pretrain", "finetune"):
        assert re.search(rf"{command}: 3 kills, \d+ runs, 0 differences", result.stdout), result.stdout


@pytest.mark.parametrize("call", [1, 4])
def test_killed_while_a_checkpoint_is_written(runs: ModuleType, whole: Path, tmp_path: Path, call: int) -> None:
    action = f"""
    if calls == {call}:
        file.write(b"half of a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)"""
    log = tmp_path / "log"
    with process(arguments(runs, tmp_path, "resume=auto"), log, ON_SAVE.format(action=action)) as running:
        assert running.wait(timeout=120) == -signal.SIGKILL, log.read_text()
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert len(list((run / "checkpoints").glob("step-*.ckpt"))) == min(call - 1, 3)
    assert len(list((run / "checkpoints").glob(".*.part"))) == 1
    result = runs.d2v_command(*arguments(runs, tmp_path, "resume=auto"))
    assert result.status in (0, None), result.err
    runs_there = sorted((tmp_path / "image_tiny").iterdir())
    a, b = runs.load(whole, STEPS), runs.load(runs_there[-1], STEPS)
    assert not runs.differences(a["state_dict"], b["state_dict"])


@pytest.mark.parametrize("again", [6, None], ids=["room-again", "full-to-the-end"])
def test_a_full_disk(runs: ModuleType, whole: Path, tmp_path: Path, again: int | None) -> None:
    """No file can grow beyond 20 kB from the third checkpoint on."""
    action = f"""
    if calls in (3, {again}):
        soft = 20_000 if calls == 3 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))"""
    log = tmp_path / "log"
    with process(arguments(runs, tmp_path), log, ON_SAVE.format(action=action)) as running:
        status = running.wait(timeout=120)
    said = log.read_text()
    assert "step-00000006.ckpt could not be written ([Errno 27] File too large)" in said
    assert "Traceback" not in said
    if again is not None:
        assert status == 0, said
        check_end(runs, whole, tmp_path)
        return
    assert status == 1
    assert "the last checkpoint, step 40, could not be written" in said
    assert "resume=auto" in said
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert runs.checkpoints(run) == ["step-00000002.ckpt", "step-00000004.ckpt"]
    ends_as(runs, whole, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint(runs: ModuleType, whole: Path, tmp_path: Path, damage: str) -> None:
    result = runs.d2v_command(*arguments(runs, tmp_path, "trainer.max_time=null"))
    assert result.status in (0, None), result.err
    (run,) = (tmp_path / "image_tiny").iterdir()
    newest = run / "checkpoints" / f"step-{STEPS:08d}.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        for i in range(1, 20):  # one place might be padding between tensors
            content[len(content) * i // 20] ^= 1
    newest.write_bytes(content)
    said = ends_as(runs, whole, tmp_path, "trainer.max_time=null")
    assert f"{newest} is damaged" in said
    assert f"step-{STEPS - EVERY:08d}.ckpt" in said


def test_a_dead_data_worker(runs: ModuleType, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = "import time; from d2v.models.data2vec2 import Data2Vec2 as M; f = M.forward\n"
    slow += "M.forward = lambda self, batch: (time.sleep(0.2), f(self, batch))[1]\n"
    with process(arguments(runs, tmp_path, "num_workers=2"), log, slow) as running:
        wait_for(lambda: any(tmp_path.glob("*/*/checkpoints/*.ckpt")), running, log)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert running.wait(timeout=120) == 1, log.read_text()
    said = log.read_text()
    assert "d2v: error: a data worker died" in said
    assert "lower num_workers" in said
    ends_as(runs, whole, tmp_path, "num_workers=2")


def test_wandb_cannot_be_reached(runs: ModuleType, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    log = tmp_path / "log"
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    with process(arguments(runs, tmp_path, "logger=wandb"), log, **nowhere) as running:
        assert running.wait(timeout=300) == 0, log.read_text()
    assert "wandb cannot be reached" in log.read_text()
    check_end(runs, whole, tmp_path)


def test_the_clock_jumps(runs: ModuleType, whole: Path, tmp_path: Path) -> None:
    jumps = "import itertools, time; n = itertools.count()\n"
    jumps += "time.time = lambda: (10**9 + 10**6 * (-1) ** next(n)) * 1.0\n"
    log = tmp_path / "log"
    with process(arguments(runs, tmp_path, "callbacks.checkpoint.every_n_minutes=1"), log, jumps) as running:
        assert running.wait(timeout=120) == 0, log.read_text()
    check_end(runs, whole, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /sys, where nobody can write")
def test_an_output_directory_that_cannot_be_written_to(runs: ModuleType) -> None:
    result = runs.d2v_command(*arguments(runs, Path("/sys/d2v")))
    assert result.status == 1
    assert result.err.startswith("d2v: error: ")
    assert "output_dir=DIR" in result.err
    assert "Traceback" not in result.err
