"""Commands of two processes, and overrides that make small runs of them."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from d2v.objective.masking import RandomMask

STEPS = 3

COMMON = [
    f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "trainer.accelerator=cpu",
    "trainer.gradient_clip_val=4", "schedule.warmup_steps=1", "optim.lr=0.01", "optim.eps=0.01", "num_threads=1",
    "callbacks.checkpoint.keep=-1", "callbacks.checkpoint.every_n_steps=1", "callbacks.health.min_spread=null",
    "callbacks.health.min_frontend_spread=null", "ema.decay_start=0.9", "ema.decay_end=0.99", "ema.anneal_steps=5",
]  # fmt: skip

MODALITIES = ["image", "speech", "text"]

WAYS = {
    "ddp": ["trainer.devices=2"],
    "fsdp": ["trainer.devices=2", "trainer.strategy=fsdp"],
}


class Uneven:
    """Random masks whose share depends on the samples, so that no two micro-batches mask equally many tokens."""

    def __init__(self, num_masks: int, **_recipes_own: float) -> None:
        self.num_masks = num_masks

    def num_visible(self, num_tokens: int) -> int:
        return num_tokens // 2

    def validate(self, grid: tuple[int, ...]) -> None:
        RandomMask(self.num_masks).validate(grid)

    def __call__(self, grid: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> np.ndarray:
        return RandomMask(self.num_masks, 0.25 + 0.5 * rngs[0].random())(grid, rngs)


class SmallBatches(L.Callback):
    """So that every process has something to score."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.datamodule.data = dataclasses.replace(trainer.datamodule.data, eval_batch_size=5)  # type: ignore[attr-defined]


class SpoilOne(SmallBatches):
    """The second process's outputs become infinite where they are scored."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            pl_module.scored.register_forward_hook(
                lambda module, _, out: out if module.training else out * float("inf")
            )


class Pair:
    """Two processes of one group, as torchrun starts them, that run one command after another.

    Most of what a small run takes is starting its processes.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.processes: list[subprocess.Popen[str]] = []

    def _start(self) -> None:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "pair",
                 "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
        with self.log.open("a") as file:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("pair_worker.py"))],
                    env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                )
                for rank in range(2)
            ]  # fmt: skip

    def begin(self, *arguments: str) -> None:
        """Start ``d2v ARGUMENTS`` in both processes."""
        if not self.processes:
            self._start()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()

    def end(self, seconds: float = 300) -> list[Any]:
        """How it ended in each: exit status, output and errors. A pair that hangs is not used again."""
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            ready = select.select([process.stdout], [], [], seconds)[0]
            answer = process.stdout.readline() if ready else ""
            if not answer:
                self.close()
                what = "a process died" if ready else "it hangs"
                raise AssertionError(f"{what}, after {answers}: {self.log.read_text()}")
            answers.append(json.loads(answer))
        return answers

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []


def close(a: Any, b: Any, name: str) -> None:
    """Equal but for the order of sums: to 1e-6 of the tensor's largest value."""
    scale = max(float(torch.as_tensor(a).abs().max()), 1e-3)
    torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * scale * 4, msg=lambda text: f"{name}: {text}")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port
