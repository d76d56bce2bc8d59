"""Small pictures, as images and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from d2v.data.images.factories import ImageData
from d2v.data.samplers import StreamSampler
from d2v.objective.masking import InverseBlockMask

MASK = InverseBlockMask(num_masks=4, mask_ratio=0.6, mask_length=2)


def picture(width: int = 40, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth RGB picture, different for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_pictures(directory: Path, count: int, suffix: str = ".png", first_seed: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(seed=first_seed + i).save(directory / f"{i:03}{suffix}")


def loader(data: ImageData, *, batches: int = 6, micro: int = 8, start: int = 0, workers: int = 0, seed: int = 3):
    sampler = StreamSampler(
        num_samples=data.num_samples, micro_batch_size=micro, num_batches=batches, start_batch=start, seed=seed
    )
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=sampler,
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )
