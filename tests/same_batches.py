"""Comparison of batches, for data of every modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2v.types import Batch


def assert_same_batches(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    """The same inputs, samples and masks in the same order; there must be some."""
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.mask is not None
        assert y.mask is not None
        assert torch.equal(x.inputs, y.inputs)
        assert torch.equal(x.sample_ids, y.sample_ids)
        assert torch.equal(x.mask.mask, y.mask.mask)
        assert (x.skipped, x.step_size) == (y.skipped, y.step_size)
