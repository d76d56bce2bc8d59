"""A real collapse on real images: the guard sees it early, in what the loss's own figures do not show."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import pytest

RUN = [
    "model.encoder.embed_dim=128",
    "model.average_top_k_layers=2",
    "model.decoders.image.decoder_dim=32",
    "model.decoders.image.depth=1",
    "global_batch_size=32",
    "mask.num_masks=4",
    "schedule.warmup_steps=0",
    "trainer.max_steps=60",
    "trainer.log_every_n_steps=5",
    "num_threads=1",
    "trainer.precision=32-true",
]
RECKLESS = ["optim.lr=0.05", "trainer.gradient_clip_val=null"]


@pytest.mark.slow
def test_a_collapse_is_stopped_early_with_advice(runs: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = runs.d2v_command("pretrain", f"hydra.run.dir={folder}", *RUN, *RECKLESS)
    assert result.status == 1
    assert "the features have collapsed at step" in result.err
    assert "optim.lr" in result.err
    assert "Traceback" not in result.err
    step = int(result.err.split("collapsed at step ")[1].split(":")[0])
    assert step <= 50
    with (folder / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["train/loss"]][-1]
    assert float(last["train/target_std"]) > 0.8  # the reference's measure sees nothing
    assert float(last["train/relative_spread"]) < 0.15  # a sound run keeps .4 and more


@pytest.mark.slow
def test_a_sound_run_is_left_alone(runs: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = runs.d2v_command("pretrain", f"hydra.run.dir={folder}", *RUN, "optim.lr=0.002")
    assert result.status in (0, None), result.err
    assert (folder / "checkpoints" / "step-00000060.ckpt").exists()
