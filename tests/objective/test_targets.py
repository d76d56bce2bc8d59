"""Target normalisation against plain loops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2v.objective.targets import batch_norm, instance_norm, normalize_targets


def slow(x: Tensor, norms: tuple[str, ...]) -> Tensor:
    x = x.double().clone()
    for norm in norms:
        lines = (
            [(b, slice(None), d) for b in range(x.shape[0]) for d in range(x.shape[2])]
            if norm == "instance"
            else [(b, t, slice(None)) for b in range(x.shape[0]) for t in range(x.shape[1])]
        )
        for line in lines:
            values = x[line].tolist()
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            x[line] = torch.tensor([(v - mean) / (var + 1e-5) ** 0.5 for v in values], dtype=torch.float64)
    return x


CHOICES = [c for n in range(3) for c in itertools.product(("instance", "layer"), repeat=n)]


@pytest.mark.parametrize("norms", CHOICES)
def test_matches_loops(norms: tuple[str, ...]) -> None:
    x = torch.randn(3, 7, 5) * torch.linspace(0.5, 4, 5) + torch.linspace(-2, 2, 7)[:, None]
    result = normalize_targets(x, norms)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), slow(x, norms), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    norms=st.sampled_from(CHOICES),
    seed=st.integers(0, 999),
)
def test_matches_loops_for_any_shape(shape: tuple[int, int, int], norms: tuple[str, ...], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(normalize_targets(x, norms).double(), slow(x, norms), rtol=1e-3, atol=1e-3)


def test_order_matters_and_is_kept() -> None:
    x = torch.randn(2, 6, 4) * torch.tensor([1.0, 2, 3, 4])
    first, second = normalize_targets(x, ("instance", "layer")), normalize_targets(x, ("layer", "instance"))
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(first.var(2, correction=0), torch.ones(2, 6), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second.var(1, correction=0), torch.ones(2, 4), rtol=1e-3, atol=1e-3)


def test_instance_norm_is_torchs_over_time() -> None:
    x = torch.randn(2, 9, 5)
    expected = torch.nn.functional.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(instance_norm(x), expected)


def test_a_constant_channel_becomes_zero_not_nan() -> None:
    assert torch.equal(instance_norm(torch.full((1, 4, 2), 3.0)), torch.zeros(1, 4, 2))


@pytest.mark.parametrize("norms", CHOICES)
def test_bfloat16_is_normalised_in_float32(norms: tuple[str, ...]) -> None:
    x = (torch.randn(2, 50, 8) + 20).bfloat16()
    result = normalize_targets(x, norms)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), slow(x.float(), norms), rtol=1e-3, atol=1e-3)


def test_autocast_does_not_lower_the_precision() -> None:
    x = torch.randn(2, 50, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = normalize_targets(x, ("instance", "layer"))
    torch.testing.assert_close(result, normalize_targets(x, ("instance", "layer")))


def test_the_input_is_left_alone() -> None:
    x = torch.randn(2, 5, 4)
    before = x.clone()
    normalize_targets(x, ("instance", "layer"))
    assert torch.equal(x, before)


def test_unknown_norms_are_refused() -> None:
    with pytest.raises(KeyError, match="group"):
        normalize_targets(torch.zeros(1, 2, 3), ("group",))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_batch_norm_keeps_a_share_of_each_samples_mean(share: float) -> None:
    x = torch.randn(4, 6, 3) * torch.tensor([0.5, 1.0, 3.0]) + torch.randn(4, 1, 3)
    expected = torch.empty_like(x, dtype=torch.float64)
    for d in range(3):
        channel = x[:, :, d].double()
        overall = channel.mean()
        rows = [row - row.mean() + share * (row.mean() - overall) for row in channel]
        variance = sum(float(v) ** 2 for row in rows for v in row) / channel.numel()
        expected[:, :, d] = torch.stack(rows) / (variance + 1e-5) ** 0.5
    torch.testing.assert_close(batch_norm(x, share).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalize_targets(x, ("batch",), share), batch_norm(x, share))


def test_a_share_of_one_is_batch_norm() -> None:
    x = torch.randn(4, 6, 3) + torch.randn(4, 1, 3)
    expected = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x)
    torch.testing.assert_close(batch_norm(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch_norm(x, 0.0).mean(dim=1), torch.zeros(4, 3), rtol=0, atol=1e-6)
