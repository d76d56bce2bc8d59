"""Gathering tokens against indexing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.nn.tokens import gather_tokens


@settings(deadline=None, max_examples=50)
@given(
    samples=st.integers(1, 4),
    masks=st.integers(1, 4),
    tokens=st.integers(1, 9),
    picked=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_matches_indexing(samples: int, masks: int, tokens: int, picked: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, tokens, 3, generator=generator)
    ids = torch.randint(tokens, (samples * masks, picked), generator=generator)
    result = gather_tokens(x, ids, masks)
    assert result.shape == (samples * masks, picked, 3)
    for n in range(samples * masks):
        for k in range(picked):
            assert torch.equal(result[n, k], x[n // masks, ids[n, k]])


def test_gradient_adds_up_over_masks() -> None:
    x = torch.randn(2, 4, 3, requires_grad=True)
    ids = torch.tensor([[0, 1], [0, 2], [3, 3], [1, 0]])
    weight = torch.randn(4, 2, 3)
    (gather_tokens(x, ids, 2) * weight).sum().backward()
    expected = torch.zeros(2, 4, 3)
    for n in range(4):
        for k in range(2):
            expected[n // 2, ids[n, k]] += weight[n, k]
    torch.testing.assert_close(x.grad, expected)
    assert x.grad[0, 3].abs().sum() == 0


def test_works_on_views_that_are_not_contiguous() -> None:
    x = torch.randn(2, 3, 5).transpose(1, 2)
    ids = torch.tensor([[4, 0], [1, 1]])
    torch.testing.assert_close(gather_tokens(x, ids), torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))


def test_rows_that_are_not_masks_of_the_samples_fail() -> None:
    with pytest.raises(RuntimeError):
        gather_tokens(torch.randn(2, 4, 3), torch.zeros(3, 2, dtype=torch.int64), 2)
