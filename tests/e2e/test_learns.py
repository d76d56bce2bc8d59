"""A few hundred steps on the images that ship with the package: the encoder gets better than it was."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from d2v.eval.features import extract
from d2v.eval.knn import knn_accuracy
from d2v.interop.build import build
from d2v.interop.native import RunCheckpoint

RUN = [
    "model.encoder.embed_dim=64",
    "model.encoder.depth=2",
    "model.encoder.prenet_depth=1",
    "model.encoder.num_heads=4",
    "data.patch_size=7",
    "model.decoders.image.decoder_dim=32",
    "model.decoders.image.depth=2",
    "model.decoders.image.groups=4",
    "model.average_top_k_layers=2",
    "mask.num_masks=4",
    "mask.mask_ratio=0.6",
    "mask.mask_length=2",
    "global_batch_size=32",
    "optim.lr=2e-3",
    "schedule.warmup_steps=20",
    "ema.decay_start=0.98",
    "ema.decay_end=0.998",
    "ema.anneal_steps=150",
    "trainer.max_steps=300",
    "trainer.log_every_n_steps=20",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "num_threads=1",
]

MARGIN = 0.04  # seeds 0 and 1: 0.735 and 0.745 after 0.645 untrained


@pytest.mark.slow
def test_a_short_run_learns(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *RUN)
    assert result.status in (0, None), result.err
    (run,) = (tmp_path / "image_tiny").iterdir()
    rows = runs.metrics(run)
    pixels = {int(row["step"]): float(row["train/loss_reconstruction"]) for row in rows}
    targets = {int(row["step"]): float(row["train/loss_regression"]) for row in rows}
    assert pixels[80] < 0.6 * pixels[1]  # of the loss on pixels alone, 90 steps
    assert targets[80] == 0 < targets[100]
    assert max(targets[step] for step in (260, 280, 300)) < 0.95 * targets[160]  # at the last share, from step 150
    assert all(float(row["train/target_std"]) > 0.3 for row in rows if int(row["step"]) >= 100)
    assert all(float(row["train/relative_spread"]) > 0.1 for row in rows)

    checkpoint = RunCheckpoint.load(next((run / "checkpoints").glob("*.ckpt")))
    model = checkpoint.build_model()
    torch.manual_seed(0)
    untrained = build(checkpoint.config["model"]["encoder"]).eval()
    data = build(checkpoint.config["data"], key="data")
    accuracies = {
        name: _knn(data, encoder) for name, encoder in (("untrained", untrained), ("student", model.student.eval()))
    }
    assert accuracies["student"] > accuracies["untrained"] + MARGIN, accuracies


def _knn(data, encoder) -> float:  # type: ignore[no-untyped-def]
    parts = []
    for split, count in (("train", 3000), ("val", 1000)):
        dataset = data.eval_dataset(split)
        subset = Subset(dataset, range(0, len(dataset), len(dataset) // count))
        features = extract(encoder, DataLoader(subset, batch_size=250, collate_fn=data.eval_collate), layers="average")
        parts += [features.features, features.labels]
    return knn_accuracy(*parts)
