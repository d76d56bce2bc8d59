"""Sentences, tokenizers and text data that are small."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from d2v.data.samplers import BatchPlan, StreamSampler
from d2v.data.texts.data import TextData
from d2v.data.texts.factories import text_files
from d2v.data.texts.tokenizer import train_tokenizer
from d2v.objective.masking import RandomMask

MASK = RandomMask(num_masks=3, mask_ratio=0.42)

WORDS = ["a", "cat", "and", "the", "other", "dog", "sat", "on", "that", "old", "mat,", "größer", "猫", "said", "no"]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


@functools.cache
def tokenizer_json() -> str:
    return train_tokenizer(sentences(50), 300).to_json()


SIZES = {"tokenizer": tokenizer_json(), "vocab_size": 300, "block_size": 16}


def files(root: str | None, **options) -> TextData:
    """With sizes for tests."""
    return text_files(root, **(SIZES | options))


def loader(data: TextData, *, batches: int = 6, micro: int = 8, start: int = 0, workers: int = 0, seed: int = 3):
    if data.streaming:
        plan = BatchPlan(micro_batch_size=micro, num_batches=batches, start_batch=start)
        return DataLoader(data.pretrain_stream(MASK, seed, plan), batch_size=None, num_workers=workers)
    sampler = StreamSampler(
        num_samples=int(data.size), micro_batch_size=micro, num_batches=batches, start_batch=start, seed=seed
    )
    return DataLoader(
        data.pretrain_dataset(seed),
        batch_sampler=sampler,
        collate_fn=data.pretrain_collate(MASK, seed),
        num_workers=workers,
    )


def table(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)
