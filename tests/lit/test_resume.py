"""2N steps are N steps, a resume and N steps: bit by bit, whatever ended the first half."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

N = 3


def _assert_same_end(runs: ModuleType, resumed: Path, whole: Path, step: int) -> None:
    a, b = runs.load(resumed, step), runs.load(whole, step)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert not runs.differences(a[part], b[part]), part
    assert any(name.startswith("model.teacher.") for name in a["state_dict"])
    assert a["optimizer_states"][0]["state"]


def _logged(runs: ModuleType, run: Path, keys: tuple[str, ...] | None = None) -> dict[int, dict[str, str]]:
    """Later rows of a step are the valid ones."""
    return {
        int(row["step"]): {k: v for k, v in row.items() if k.startswith("train/") and (keys is None or k in keys)}
        for row in runs.metrics(run)
    }


LOSSES = ("train/loss", "train/loss_regression", "train/loss_cls", "train/grad_norm", "train/lr", "train/target_std",
          "train/pred_std", "train/ema_decay", "train/masked_fraction")  # fmt: skip


def _disturb() -> None:
    """A new process has other random states."""
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)


def _halves(runs: ModuleType, tmp_path: Path, overrides: list[str], damage: str) -> tuple[Path, Path]:
    """A whole run, and its second half done again from the checkpoint in its middle.

    Args:
        runs: ``tiny_runs``.
        tmp_path: holds both.
        overrides: of the runs.
        damage: what happens to the checkpoint at the end before the second half: "gone", "cut" or "flipped".
    """
    common = [*runs.NOISE, f"trainer.max_steps={2 * N}", f"callbacks.checkpoint.every_n_steps={N}", *overrides]
    whole = runs.pretrain(tmp_path / "a", *common)
    resumed = tmp_path / "b" / "image_tiny" / "run"
    shutil.copytree(whole, resumed)
    end = resumed / "checkpoints" / f"step-{2 * N:08d}.ckpt"
    content = bytearray(end.read_bytes())
    if damage == "gone":
        end.unlink()
    elif damage == "cut":
        end.write_bytes(content[: len(content) // 2])
    else:
        for i in range(1, 20):  # one place might be padding between tensors
            content[len(content) * i // 20] ^= 1
        end.write_bytes(content)
    _disturb()
    again = runs.pretrain(tmp_path / "b", *common, f"resume={resumed}")
    assert again == resumed
    return whole, resumed


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("small", [False, True], ids=["mid-epoch", "many-epochs"])
def test_a_resumed_run_is_the_uninterrupted_one(
    runs: ModuleType, images: Path, tmp_path: Path, num_workers: int, accumulate: int, small: bool
) -> None:
    """With dropout, stochastic depth and decoder noise; in the middle of an epoch, and over several."""
    overrides = [f"num_workers={num_workers}", f"micro_batch_size={4 // accumulate}"]
    if small:
        overrides += [*runs.folder_data(images / "val"), "global_batch_size=20", f"micro_batch_size={20 // accumulate}"]
    damage = ("gone", "cut", "flipped")[(num_workers + accumulate + small) % 3]
    whole, resumed = _halves(runs, tmp_path, overrides, damage)
    _assert_same_end(runs, resumed, whole, 2 * N)
    expected = _logged(runs, whole, LOSSES)
    assert _logged(runs, resumed, LOSSES) == expected
    assert len(expected) == 2 * N
    # the file keeps its history: every step of the first run, then those that were done again
    steps = [int(row["step"]) for row in runs.metrics(resumed)]
    assert steps == [*range(1, 2 * N + 1), *range(N + 1, 2 * N + 1)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_read_on_where_they_were_left(runs: ModuleType, tmp_path: Path, num_workers: int) -> None:
    """More than a pass over each reader's share; the trainer had taken a batch more than the checkpoint counts."""
    data = runs.image_shards(tmp_path / "data", num_shards=2, rows=4)
    whole, resumed = _halves(runs, tmp_path, [*data, f"num_workers={num_workers}", "micro_batch_size=2"], "gone")
    _assert_same_end(runs, resumed, whole, 2 * N)
    (states,) = runs.load(whole, 2 * N)["PretrainDataModule"]["loaders"]
    assert len(states["positions"]) == max(1, num_workers)
    assert any(position["epoch"] > 0 for position in states["positions"])


def test_num_workers_change_nothing(runs: ModuleType, tmp_path: Path) -> None:
    ends = [
        runs.load(runs.pretrain(tmp_path / str(n), *runs.NOISE, f"num_workers={n}"), 4)["state_dict"] for n in (0, 1)
    ]
    assert not runs.differences(*ends)


def test_health_is_resumed_too(runs: ModuleType, tmp_path: Path) -> None:
    """The collapse guard judges by it."""
    whole, resumed = _halves(runs, tmp_path, [], "gone")
    keys = ("train/effective_rank", "train/relative_spread")
    assert _logged(runs, resumed, keys) == _logged(runs, whole, keys)


def test_in_bfloat16(runs: ModuleType, tmp_path: Path) -> None:
    whole, resumed = _halves(runs, tmp_path, ["trainer.precision=bf16-mixed"], "gone")
    _assert_same_end(runs, resumed, whole, 2 * N)


def test_resume_from_a_checkpoint_file(runs: ModuleType, tmp_path: Path) -> None:
    common = ["callbacks.checkpoint.every_n_steps=2"]
    run = runs.pretrain(tmp_path, *common)
    whole = runs.load(run, 4)
    file = run / "checkpoints" / "step-00000002.ckpt"
    _disturb()
    assert runs.pretrain(tmp_path, *common, f"resume={file}") == run
    again = runs.load(run, 4)
    for part in ("state_dict", "optimizer_states"):
        assert not runs.differences(whole[part], again[part])


def test_a_run_that_went_back_is_not_resumed_from_the_future_it_left(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=1", "schedule.max_steps=4")
    file = run / "checkpoints" / "step-00000001.ckpt"
    back = ["callbacks.checkpoint.every_n_steps=1", "schedule.max_steps=4", "trainer.max_steps=2"]
    runs.pretrain(tmp_path, *back, f"resume={file}")
    assert runs.checkpoints(run) == [f"step-0000000{name}" for name in ("1.ckpt", "2.ckpt", "2.ckpt.left",
                                                                        "3.ckpt.left", "4.ckpt.left")]  # fmt: skip
    result = runs.d2v_command("pretrain", *runs.TINY, *back, f"resume={run}")
    assert "resuming from" in result.out + result.err
    assert "step-00000002.ckpt" in result.out + result.err


def test_a_longer_run_goes_on_from_a_shorter_one(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "schedule.max_steps=6", "trainer.max_steps=3")
    runs.pretrain(tmp_path, "schedule.max_steps=6", "trainer.max_steps=6", f"resume={run}")
    whole = runs.pretrain(tmp_path / "whole", "schedule.max_steps=6", "trainer.max_steps=6")
    _assert_same_end(runs, run, whole, 6)


def test_resuming_a_finished_run_does_nothing(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path)
    before = (run / "checkpoints" / "step-00000004.ckpt").read_bytes()
    rows = runs.metrics(run)
    assert runs.pretrain(tmp_path, "resume=auto") == run
    assert (run / "checkpoints" / "step-00000004.ckpt").read_bytes() == before
    assert runs.checkpoints(run) == ["step-00000004.ckpt"]
    assert runs.metrics(run) == rows


QUIET = ["model.decoders.image.mask_noise_std=0", "optim.eps=0.01"]  # no noise, which parts of a batch draw anew


def test_another_global_batch_is_refused_and_other_parts_of_the_same_are_not(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path / "whole", "callbacks.checkpoint.every_n_steps=2", *QUIET)
    (run / "checkpoints" / "step-00000004.ckpt").rename(tmp_path / "end.ckpt")
    command = ["pretrain", *runs.TINY, f"resume={run}", "callbacks.checkpoint.every_n_steps=2", *QUIET]
    refused = runs.d2v_command(*command, "global_batch_size=8")
    assert refused.status == 1
    assert "global_batch_size=8: the run that is resumed has 4" in refused.err
    assert runs.d2v_command(*command, "micro_batch_size=2").status in (0, None)
    end, wanted = runs.load(run, 4), torch.load(tmp_path / "end.ckpt", weights_only=True)
    for name, value in wanted["state_dict"].items():
        torch.testing.assert_close(end["state_dict"][name], value, rtol=1e-3, atol=1e-4)


def test_auto_takes_the_newest_run_of_this_very_command(runs: ModuleType, tmp_path: Path) -> None:
    old = runs.pretrain(tmp_path)
    new = runs.pretrain(tmp_path)
    other = runs.pretrain(tmp_path, "seed=7")
    assert len({old, new, other}) == 3
    assert runs.pretrain(tmp_path, "resume=auto") == new
    assert runs.pretrain(tmp_path, "resume=auto", "seed=7") == other
    fresh = runs.pretrain(tmp_path, "resume=auto", "seed=8")
    assert fresh not in (old, new, other)
    assert runs.pretrain(tmp_path, "resume=auto", "seed=8") == fresh


def test_auto_starts_anew_when_there_is_nothing_and_says_so(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_steps=1", "resume=auto")
    assert result.status in (0, None), result.err
    assert "starting a new one" in result.out + result.err


def test_a_damaged_checkpoint_is_named(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path, "callbacks.checkpoint.every_n_steps=2")
    newest = run / "checkpoints" / "step-00000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])
    result = runs.d2v_command(
        "pretrain", f"output_dir={tmp_path}", *runs.TINY, "callbacks.checkpoint.every_n_steps=2", "resume=auto"
    )
    assert result.status in (0, None), result.err
    assert newest.name in result.out + result.err
    assert "falling back" in result.out + result.err
    assert runs.load(run, 4)["global_step"] == 4  # written again


def test_init_from_starts_at_step_0_with_those_weights(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path)
    frozen = ["trainer.max_steps=1", "optim.lr=1e-60", "ema.decay_start=1", "ema.decay_end=1", "seed=5"]
    for source in (run, run / "checkpoints" / "step-00000004.ckpt"):
        started = runs.pretrain(tmp_path / "new", *frozen, f"init_from={source}")
        assert started != run
        content = runs.load(started, 1)
        assert content["global_step"] == 1
        assert not runs.differences(content["state_dict"], runs.load(run, 4)["state_dict"])


def test_resume_wins_over_init_from(runs: ModuleType, tmp_path: Path) -> None:
    """The command that started from other weights is killed, and run again with resume=auto."""
    source = runs.pretrain(tmp_path / "source", "trainer.max_steps=1")
    common = [f"init_from={source}", "callbacks.checkpoint.every_n_steps=2"]
    run = runs.pretrain(tmp_path, *common)
    end = runs.load(run, 4)
    (run / "checkpoints" / "step-00000004.ckpt").unlink()
    assert runs.pretrain(tmp_path, *common, "resume=auto") == run
    assert not runs.differences(runs.load(run, 4)["state_dict"], end["state_dict"])


# Runs that are killed are processes of their own.

STEPS, EVERY = 120, 4


def _command(runs: ModuleType, output_dir: Path) -> list[str]:
    return [
        f"output_dir={output_dir}", *runs.TINY, *runs.NOISE, f"trainer.max_steps={STEPS}",
        f"callbacks.checkpoint.every_n_steps={EVERY}", "callbacks.checkpoint.keep=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    result = runs.d2v_command("pretrain", *_command(runs, tmp_path_factory.mktemp("whole")))
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "d2v.cli.main", "pretrain", *arguments],
            stdout=file, stderr=file, env=environment, start_new_session=True,
        )  # fmt: skip


def _wait_for_checkpoint(process: subprocess.Popen[bytes], output_dir: Path, log: Path) -> None:
    for _ in range(24_000):
        if any(output_dir.glob("*/*/checkpoints/*.ckpt")):
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    _kill_all(process)
    raise AssertionError(log.read_text())


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Leave none of the run's processes behind, data workers included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.faults
@pytest.mark.parametrize("first", [[], ["resume=auto"]], ids=["then-auto", "auto-from-the-start"])
def test_a_killed_run_is_continued_by_the_same_command(
    runs: ModuleType, tmp_path: Path, whole_run: Path, first: list[str]
) -> None:
    command, log = _command(runs, tmp_path), tmp_path / "log"
    process = _start([*command, *first], log)
    try:
        _wait_for_checkpoint(process, tmp_path, log)
    finally:
        _kill_all(process)
    assert process.returncode == -signal.SIGKILL, log.read_text()
    result = runs.d2v_command("pretrain", *command, "resume=auto")
    assert result.status in (0, None), result.err
    (run,) = (tmp_path / "image_tiny").iterdir()
    _assert_same_end(runs, run, whole_run, STEPS)
    assert _logged(runs, run, LOSSES) == _logged(runs, whole_run, LOSSES)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_exits_cleanly(
    runs: ModuleType, tmp_path: Path, whole_run: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches all processes of the run, data workers included, as from a terminal; SIGTERM the run itself."""
    command, log = _command(runs, tmp_path), tmp_path / "log"
    process = _start([*command, "num_workers=2"], log)
    try:
        _wait_for_checkpoint(process, tmp_path, log)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        status = process.wait(timeout=120)
    finally:
        _kill_all(process)
    printed = log.read_text()
    assert status == 128 + number, printed
    assert f"to go on: d2v pretrain resume={tmp_path}" in printed
    assert "Traceback" not in printed
    (run,) = (tmp_path / "image_tiny").iterdir()
    stopped_at = int(runs.checkpoints(run)[-1].removeprefix("step-").removesuffix(".ckpt"))
    assert EVERY <= stopped_at < STEPS
    assert f"stopping after step {stopped_at}\n" in printed
    result = runs.d2v_command("pretrain", *command, "num_workers=2", "resume=auto")
    assert result.status in (0, None), result.err
    assert f"step-{stopped_at:08d}.ckpt" in result.out + result.err
    _assert_same_end(runs, run, whole_run, STEPS)
