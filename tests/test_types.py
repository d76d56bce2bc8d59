"""The structures that flow between the parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.types import Batch, EncoderOutput, TokenMask


def random_bits(rows: int, tokens: int, masked: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.zeros(rows, tokens, dtype=torch.bool)
    for row in bits:
        row[torch.randperm(tokens, generator=generator)[:masked]] = True
    return bits


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 4),
    num_masks=st.integers(1, 4),
    tokens=st.integers(2, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_indices_partition_and_restore_inverts(
    samples: int, num_masks: int, tokens: int, share: float, seed: int
) -> None:
    masked = min(max(1, int(tokens * share)), tokens - 1)
    bits = random_bits(samples * num_masks, tokens, masked, seed)
    mask = TokenMask.from_bool(bits, num_masks)
    assert mask.num_masks == num_masks
    assert torch.equal(mask.mask, bits)
    assert {t.dtype for t in (mask.ids_keep, mask.ids_mask, mask.ids_restore)} == {torch.int64}
    for n, row in enumerate(bits.tolist()):
        assert mask.ids_keep[n].tolist() == [t for t in range(tokens) if not row[t]]
        assert mask.ids_mask[n].tolist() == [t for t in range(tokens) if row[t]]
        both = mask.ids_keep[n].tolist() + mask.ids_mask[n].tolist()
        assert [both[i] for i in mask.ids_restore[n].tolist()] == list(range(tokens))


@pytest.mark.parametrize(
    ("bits", "num_masks", "words"),
    [
        (torch.zeros(2, 4), 1, "2-d bool"),
        (torch.zeros(4, dtype=torch.bool), 1, "2-d bool"),
        (torch.eye(3, dtype=torch.bool), 2, "3 mask rows are not a multiple of num_masks=2"),
        (torch.tensor([[True, False, False], [True, True, False]]), 1, r"same number of tokens, got \[1, 2\]"),
        (torch.ones(2, 3, dtype=torch.bool), 1, "3 of 3 tokens masked"),
        (torch.zeros(2, 3, dtype=torch.bool), 1, "0 of 3 tokens masked"),
    ],
)
def test_impossible_masks_are_refused(bits: torch.Tensor, num_masks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenMask.from_bool(bits, num_masks)


@pytest.mark.parametrize(("rows", "num_masks"), [(0, 1), (3, 0)])
def test_no_rows_or_no_masks_are_refused(rows: int, num_masks: int) -> None:
    with pytest.raises(ValueError):
        TokenMask.from_bool(random_bits(rows, 4, 2), num_masks)


def full_batch() -> Batch:
    return Batch(
        "image",
        torch.randn(2, 3, 4, 4),
        torch.tensor([5, 6]),
        TokenMask.from_bool(random_bits(4, 4, 3), 2),
        torch.zeros(2, 4, dtype=torch.bool),
        torch.tensor([0, 1]),
        ("a.jpg: broken",),
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    mask = batch.mask
    masks = [] if mask is None else [mask.mask, mask.ids_keep, mask.ids_mask, mask.ids_restore]
    return [t for t in (batch.inputs, batch.sample_ids, batch.padding_mask, batch.labels, *masks) if t is not None]


def test_a_batch_moves_as_a_whole() -> None:
    batch = full_batch()
    moved = batch.to("meta")
    assert len(tensors(moved)) == 8
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert moved.modality == "image"
    assert moved.skipped == ("a.jpg: broken",)
    assert moved.mask is not None
    assert moved.mask.num_masks == 2
    assert {t.device.type for t in tensors(batch)} == {"cpu"}
    stayed = batch.to(torch.device("cpu"), non_blocking=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(stayed), strict=True))


def test_optional_parts_stay_out() -> None:
    batch = Batch("image", torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64)).to("cpu")
    assert batch.mask is None
    assert batch.padding_mask is None
    assert batch.labels is None
    assert batch.skipped == ()


def test_structures_are_frozen() -> None:
    batch = full_batch()
    for item, field in ((batch, "inputs"), (batch.mask, "mask")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, field, torch.zeros(1))


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_patch_tokens_leave_the_prefix_out(num_prefix: int) -> None:
    x = torch.randn(2, 7, 4)
    assert torch.equal(EncoderOutput(x, (), num_prefix).patch_tokens, x[:, num_prefix:])
