import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2v.eval.health import effective_rank, relative_spread
from d2v.objective.losses import feature_std


def rankme_by_svd(x: Tensor) -> float:
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), d=st.integers(1, 40), rank=st.integers(1, 40), seed=st.integers(0, 1000))
def test_effective_rank_matches_svd(n: int, d: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=generator) @ torch.randn(rank, d, generator=generator)
    assert effective_rank(x).item() == pytest.approx(rankme_by_svd(x), rel=1e-4)
    assert effective_rank(x.T).item() == pytest.approx(effective_rank(x).item(), rel=1e-4)


def test_effective_rank_of_ill_conditioned_features_matches_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 50, generator=generator) * torch.logspace(0, -6, 50)
    assert effective_rank(x).item() == pytest.approx(rankme_by_svd(x), rel=1e-4)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(16)).item() == pytest.approx(16, rel=1e-4)
    assert effective_rank(torch.eye(16)[:, :5]).item() == pytest.approx(5, rel=1e-4)
    assert effective_rank(1e4 * torch.eye(16)).item() == pytest.approx(16, rel=1e-4)
    assert effective_rank(torch.ones(30, 8)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(30, 8)).item() == pytest.approx(1, abs=1e-3)


def test_feature_std_matches_a_loop() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(7)
    expected = sum(math.sqrt(np.var(column, ddof=1) + 1e-6) for column in x.double().numpy().T) / 7
    assert feature_std(x).item() == pytest.approx(expected, rel=1e-5)


def test_feature_std_floor() -> None:
    assert feature_std(torch.full((9, 4), 3.3)).item() == pytest.approx(1e-3)
    assert feature_std(torch.randn(1, 4)).item() == pytest.approx(1e-3)


def test_relative_spread_matches_a_loop() -> None:
    x = 2 + torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    columns = x.double().numpy().T
    variance = sum(np.mean((c - c.mean()) ** 2) for c in columns) / 7
    rms = math.sqrt(sum(np.mean(c**2) for c in columns) / 7)
    assert relative_spread(x).item() == pytest.approx(math.sqrt(variance) / rms, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 30), d=st.integers(1, 10), shift=st.floats(-100, 100), scale=st.floats(1e-3, 1e3))
def test_relative_spread_is_a_fraction_and_ignores_scale(n: int, d: int, shift: float, scale: float) -> None:
    x = shift + torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    spread = relative_spread(x).item()
    assert 0 <= spread <= 1 + 1e-5
    assert relative_spread(scale * x).item() == pytest.approx(spread, rel=1e-2, abs=1e-5)


def test_relative_spread_ends() -> None:
    x = torch.randn(20, 5)
    assert relative_spread(x - x.mean(0)).item() == pytest.approx(1, abs=1e-5)
    assert relative_spread(x[:1].expand(20, 5)).item() == pytest.approx(0, abs=1e-6)
    assert relative_spread(torch.zeros(20, 5)).item() == 0


@pytest.mark.parametrize("measure", [effective_rank, feature_std, relative_spread])
def test_is_a_detached_float32_scalar_whatever_the_input(measure) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    expected = measure(x)
    assert expected.ndim == 0
    assert expected.dtype == torch.float32
    assert not measure(x.clone().requires_grad_()).requires_grad
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert measure(x.to(dtype)).dtype == torch.float32
        torch.testing.assert_close(measure(x.to(dtype)), measure(x.to(dtype).float()))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(measure(x), expected)
    # Squares of these overflow in float16.
    assert measure((1000 * x).half()).isfinite()


@pytest.mark.parametrize("measure", [effective_rank, relative_spread])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 3, 4)])
def test_refuses_other_shapes(measure, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, D\) features"):
        measure(torch.zeros(shape))
