"""Check that runs killed at random moments and resumed by the same command end like an uninterrupted run.

    python scripts/prove_kills.py --kills 100

Tiny runs of pretraining and fine-tuning in turn, ``resume=auto`` each time, SIGKILL each time. At their ends the last
and the best checkpoint are compared with those of the uninterrupted run, to the last bit: weights, of the last one
optimizer and schedule, too; of fine-tuning also the scores. Runs are forks of one process that has imported everything.
Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process without threads can be forked

import numpy as np
import torch
from PIL import Image

import d2v.cli.finetune
import d2v.cli.pretrain  # what all runs import
from d2v.cli import main as command_line
from d2v.runs.checkpoints import BEST, FOLDER, checkpoint_name
from d2v.runs.results import read_results

STEPS = 24
SIZE = ["data.img_size=28", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]"]
COMMON = [
    "data=image_folder", f"trainer.max_steps={STEPS}", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.log_every_n_steps=1", "num_threads=1", "global_batch_size=8", "callbacks.checkpoint.every_n_steps=3",
    "callbacks.checkpoint.keep=2",
]  # fmt: skip
PRETRAIN = [
    "model.encoder.embed_dim=32", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.average_top_k_layers=1",
    "data.patch_size=7", "model.decoders.image.decoder_dim=16",
    "model.decoders.image.groups=4", "model.encoder.drop_path_rate=0.2", "schedule.warmup_steps=2", "optim.lr=0.01",
    "callbacks=probe", "callbacks.probe.every_n_steps=2", "callbacks.checkpoint.monitor=probe/knn",
    "callbacks.health.min_spread=null",
]  # fmt: skip
# The learning rate grows to the end, so that the best scores come before it.
FINETUNE = [
    "task=image_classification", "optim.lr=0.1", "optim.layer_decay=1", "schedule.warmup_fraction=0.9",
    "callbacks.score.every_n_steps=2", "ema_decay=0.9",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A command, and the folder in which its runs lie.

    Attributes:
        command: its words, but for ``output_dir`` and ``resume``.
        folder: of the run that nothing interrupts.
        seconds: that one takes.
    """

    command: Sequence[str]
    folder: Path
    seconds: float


def make_images(root: Path) -> Path:
    """Class folders of a darker and a brighter class, hard enough to tell apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 24)):
        for name, brightness in (("dark", 110), ("light", 140)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(brightness, 60, (28, 28)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def start(command: Sequence[str], log: Path) -> int:
    """A process that runs ``d2v COMMAND``; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["d2v", *command]
        command_line.main()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(command: Sequence[str], log: Path) -> Path:
    """Let a command come to its end.

    Returns:
        The run's folder.
    """
    _, status = os.waitpid(start(command, log), 0)
    said = log.read_text()
    if status:
        raise RuntimeError(f"d2v {' '.join(command)}: {said[-3000:]}")
    return Path(said.rpartition("run: ")[2].split("\n")[0])


def kill(command: Sequence[str], log: Path, rng: random.Random, seconds: float) -> bool:
    """Start a command and kill it at a random moment, mostly of its training.

    Returns:
        Whether it was killed; else it had come to its end before.
    """
    log.touch()
    seen = log.stat().st_size
    pid = start(command, log)
    trains = rng.random() < 0.8
    end = time.monotonic() + (60 if trains else rng.uniform(0, seconds))
    while time.monotonic() < end:
        if not _lives(pid):
            break
        if trains and b"\nrun " in log.read_bytes()[seen:]:  # the summary's last line: training begins
            trains, end = False, time.monotonic() + rng.uniform(0, seconds / 2)
        time.sleep(0.002)
    if _lives(pid):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"d2v {' '.join(command)}: {log.read_text()[-3000:]}")
    return os.WIFSIGNALED(status)


def _lives(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def state_of(folder: Path) -> dict[str, Any]:
    """Return the end of a run: its last and its best checkpoint, and its scores if it was fine-tuned."""
    last, best = (
        torch.load(folder / FOLDER / name, map_location="cpu", weights_only=True)
        for name in (checkpoint_name(STEPS), BEST)
    )
    state = {
        "last": {key: last[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")},
        "best": {key: best[key] for key in ("state_dict", "global_step")},
    }
    results = read_results(folder)
    return state if results is None else {**state, "results": results}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two nested containers differ, tensors compared bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        differing = [f"{path}.{key}" for key in a.keys() ^ b.keys()]
        return differing + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def whole_run(name: str, command: Sequence[str], folder: Path) -> Run:
    """The run that nothing interrupts."""
    begin = time.monotonic()
    run = finish([*command, f"output_dir={folder / name}"], folder / f"{name}.log")
    return Run(command, run, time.monotonic() - begin)


def prove(run: Run, folder: Path, kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill runs of a command so many times, and let each come to its end.

    Returns:
        How many runs ended, and where they differ from the one that nothing interrupted.
    """
    wanted = state_of(run.folder)
    ended, killed, differing = 0, 0, []
    while killed < kills:
        output = folder / f"killed{ended}"
        output.mkdir(parents=True)
        log, command = output / "log", [*run.command, f"output_dir={output}", "resume=auto"]
        here = 0
        while killed < kills and here < 12 and kill(command, log, rng, run.seconds):
            killed, here = killed + 1, here + 1
        ended += 1
        different = differences(wanted, state_of(finish(command, log)))
        differing += [f"{output}: {place}" for place in different]
        best, last = wanted["best"]["global_step"], wanted["last"]["global_step"]
        print(
            f"{'FAIL' if different else 'ok  '} {run.command[0]}: killed {here} times; step {last} and the best, step "
            f"{best}, {'differ' if different else 'are the same'}",
            flush=True,
        )
        if not different:
            shutil.rmtree(output)
    return ended, differing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many, half of them in pretraining")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    assert d2v.cli.pretrain is not None
    assert d2v.cli.finetune is not None
    folder, rng, failed = Path(tempfile.mkdtemp(prefix="d2v-kills-")), random.Random(options.seed), []
    images = [*SIZE, f"data.root={make_images(folder / 'images')}"]
    pretraining = whole_run("pretrain", ["pretrain", *COMMON, *PRETRAIN, *images], folder)
    finetuning = whole_run(
        "finetune", ["finetune", *COMMON, *FINETUNE, *images, f"checkpoint={pretraining.folder}"], folder
    )
    for run, kills in ((pretraining, (options.kills + 1) // 2), (finetuning, options.kills // 2)):
        ended, differing = prove(run, folder / run.command[0] / "killed", kills, rng)
        failed += differing
        print(f"{run.command[0]}: {kills} kills, {ended} runs, {len(differing)} differences", flush=True)
    if failed:
        print("\n".join([*failed[:20], f"files: {folder}"]))
    else:
        shutil.rmtree(folder)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
