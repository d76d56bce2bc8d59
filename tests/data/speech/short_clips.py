"""Short clips of noise, as files and as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from d2v.data.batching import BatchSplit
from d2v.data.speech.data import SpeechData
from d2v.data.speech.factories import audio_folder
from d2v.objective.masking import SpanMask

CONVS = ((4, 10, 5), (4, 8, 4), (8, 4, 2))  # a frame every 40 samples, from 105

MASK = SpanMask(num_masks=2, mask_ratio=0.5, mask_length=3)

RATE = 16000


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32) + 0.1


def save(path: Path, num_samples: int, seed: int = 0) -> Path:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(num_samples, seed), RATE)
    return path


def damage(path: Path) -> None:
    """Cut a file behind its header."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SECONDS = [round(0.1 + 0.015 * i, 3) for i in range(20)]  # 0.1 to 0.385

FACTORIES = "d2v.data.speech.factories"

SIZES = {"conv_layers": CONVS, "min_seconds": 0.05, "max_seconds": 0.3, "pool_size": 20}


def speech(root: Path, **options) -> SpeechData:
    return audio_folder(str(root), **(SIZES | options))


def loader(
    data: SpeechData, *, seconds: float = 1.0, steps: int = 12, start: int = 0, workers: int = 0, seed: int = 3, **plan
):
    parts = plan.get("world_size", 1) * plan.get("accumulate", 1)
    split = BatchSplit(seconds / parts, plan.get("accumulate", 1), plan.get("world_size", 1))
    plan = {"num_batches": steps * split.accumulate, "start_batch": start * split.accumulate} | plan
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=data.pretrain_sampler(seed, split, **plan),
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )
