"""Two processes, however they are started and whatever ends one of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from two_processes import STEPS, WAYS, Pair, close, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


def test_what_one_process_finds_wrong_ends_both(images: Path, run_of: Any, pair: Pair, tmp_path: Path) -> None:
    """Scores are made of both processes' shares: neither waits for the other's, nor goes on without it."""
    pair.begin(
        "finetune", f"hydra.run.dir={tmp_path / 'run'}", "task=image_classification", f"data.root={images}",
        "data.img_size=28", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]", "trainer.accelerator=cpu",
        f"checkpoint={run_of('image', 'one')}", "global_batch_size=8", "trainer.max_steps=2", "num_threads=1",
        "trainer.precision=32-true", "schedule.warmup_fraction=0", "labels.augment.mixup=0", "labels.augment.cutmix=0",
        "+callbacks.spoil._target_=two_processes.SpoilOne", *WAYS["ddp"],
    )  # fmt: skip
    for status, out, err in pair.end(120):
        assert status == 1, out + err
        assert "the model's outputs are not finite: lower optim.lr" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_told_to_stop_they_stop_together(
    runs: ModuleType, recipes: dict[str, list[str]], pair: Pair, tmp_path: Path, rank: int
) -> None:
    """Whichever gets SIGTERM: a checkpoint, which both have waited for, and a clean end."""
    run = tmp_path / "run"
    often = ["trainer.max_steps=100000", "callbacks.checkpoint.keep=1", "callbacks.checkpoint.every_n_steps=5"]
    pair.begin("pretrain", f"hydra.run.dir={run}", *recipes["image"], *WAYS["ddp"], *often)
    for _ in range(6000):
        if list(run.glob("checkpoints/step-*.ckpt")):
            break
        time.sleep(0.02)
    os.kill(pair.processes[rank].pid, signal.SIGTERM)
    ends = pair.end(120)
    assert [status for status, *_ in ends] == [143, 0], ends  # the first one's is the run's
    assert "stopped by SIGTERM after step " in ends[0][1]
    (name,) = runs.checkpoints(run)
    step = int(name[5:13])
    assert all(re.search(rf"stopping after step {step}\b", out + err) for _, out, err in ends)


def test_a_full_disk_of_the_first_fails_both(recipes: dict[str, list[str]], pair: Pair, tmp_path: Path) -> None:
    """The other has nothing to write, and is told: it must not wait for ever, nor take the run for saved."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file where the folder would be")
    pair.begin("pretrain", f"hydra.run.dir={run}", *recipes["image"], *WAYS["ddp"])
    for status, out, err in pair.end(120):
        assert status == 1, out + err
        assert "the last checkpoint, step 3, could not be written" in err


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun(
    runs: ModuleType, run_of: Any, recipes: dict[str, list[str]], cache: Path, tmp_path: Path, rendezvous: str
) -> None:
    """Its processes agree on one folder, and on what to go on from."""
    extra = (
        [f"--master-port={free_port()}"] if rendezvous == "static"
        else ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    )  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *extra, "-m", "d2v.cli.main",
        "pretrain", f"output_dir={tmp_path}", *recipes["image"], "trainer.devices=2", "resume=auto",
    ]  # fmt: skip
    for steps in (1, STEPS):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "D2V_CACHE": str(cache)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        (run,) = (tmp_path / "image_tiny").iterdir()
        if steps == 1:
            for later in (2, STEPS):
                (run / "checkpoints" / f"step-{later:08d}.ckpt").unlink()
    for key, value in runs.load(run_of("image", "one"), STEPS)["state_dict"].items():
        close(value, runs.load(run, STEPS)["state_dict"][key], key)


def test_tasks_of_a_slurm_step(
    runs: ModuleType, run_of: Any, recipes: dict[str, list[str]], cache: Path, tmp_path: Path
) -> None:
    """Started a second apart, as srun may do, they share a folder."""
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_NODELIST": "127.0.0.1",
    }  # fmt: skip
    tasks = []
    for rank in range(2):
        environment = {**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                       "OMP_NUM_THREADS": "1", "D2V_CACHE": str(cache)}  # fmt: skip
        tasks.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "d2v.cli.main",
                    "pretrain",
                    f"output_dir={tmp_path}",
                    *recipes["image"],
                    "trainer.devices=2",
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        time.sleep(1.1)
    for task in tasks:
        out, _ = task.communicate(timeout=300)
        assert task.returncode == 0, out
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert run.name == "slurm-7.0"
    for key, value in runs.load(run_of("image", "one"), STEPS)["state_dict"].items():
        close(value, runs.load(run, STEPS)["state_dict"][key], key)
