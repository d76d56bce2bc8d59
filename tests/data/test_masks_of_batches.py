"""The masks of a batch: drawn from each sample's own generator of masks, whatever else is drawn for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2v.data.datasets import PretrainCollate
from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.data.source import Sample
from d2v.data.speech.batches import ClipCollate
from d2v.objective.masking import InverseBlockMask, SpanMask

SEED = 7
KEYS = [SampleKey(0, 4), SampleKey(0, 0), SampleKey(2, 4)]


def samples(*shape: int) -> list[Sample]:
    return [Sample(torch.zeros(shape), key) for key in KEYS]


CASES = {
    "images": (PretrainCollate("image", InverseBlockMask(2, 0.6, 2), (6, 6), SEED), (1, 12, 12), (6, 6)),
    "texts": (PretrainCollate("text", SpanMask(2, 0.5, 3), (40,), SEED), (40,), (40,)),
    "speech": (ClipCollate("speech", SpanMask(2, 0.5, 3), (), SEED, ((4, 10, 5),)), (205,), (40,)),
}


@pytest.mark.parametrize("name", CASES)
def test_masks_come_from_the_samples_own_generators_of_masks(name: str) -> None:
    collate, shape, grid = CASES[name]
    batch = collate(samples(*shape))
    assert batch.mask is not None
    expected = collate.mask_generator(grid, [sample_rng(SEED, *key, RandomStream.MASK) for key in KEYS])
    assert np.array_equal(batch.mask.mask.numpy(), expected)


@pytest.mark.parametrize("name", CASES)
def test_masks_do_not_depend_on_the_other_samples_of_the_batch(name: str) -> None:
    collate, shape, _ = CASES[name]
    whole = collate(samples(*shape))
    for row, sample in enumerate(samples(*shape)):
        alone = collate([sample])
        assert whole.mask is not None
        assert alone.mask is not None
        assert torch.equal(whole.mask.mask[2 * row : 2 * row + 2], alone.mask.mask)
