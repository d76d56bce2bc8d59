"""The regression loss against loops."""

from __future__ import annotations

import pytest
import torch

from d2v.objective.losses import feature_std, regression_loss_sum


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_matches_loops(beta: float, scale: float) -> None:
    pred, target = torch.randn(3, 5, 4) * 2, torch.randn(3, 5, 4)
    total = 0.0
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        d = abs(p - t)
        total += d * d if beta == 0 else d * d / (2 * beta) if d < beta else d - beta / 2
    loss = regression_loss_sum(pred, target, scale, beta)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(total * scale, rel=1e-5)


def test_is_a_sum_over_tokens_and_features() -> None:
    pred, target = torch.randn(4, 6, 8), torch.randn(4, 6, 8)
    once = regression_loss_sum(pred, target, 1.0)
    assert once.item() == pytest.approx(pred.numel() * (pred - target).square().mean().item(), rel=1e-5)
    twice = regression_loss_sum(torch.cat([pred, pred]), torch.cat([target, target]), 1.0)
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-6)
    parts = sum(regression_loss_sum(p, t, 1.0).item() for p, t in zip(pred, target, strict=True))
    assert once.item() == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_bfloat16_is_summed_in_float32(beta: float) -> None:
    pred, target = torch.randn(40, 8).bfloat16(), torch.randn(40, 8)
    loss = regression_loss_sum(pred, target, 0.5, beta)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(regression_loss_sum(pred.float(), target, 0.5, beta).item(), rel=1e-6)


def test_gradient_is_twice_the_scaled_error() -> None:
    pred, target = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    regression_loss_sum(pred, target, 0.5).backward()
    torch.testing.assert_close(pred.grad, (pred - target).detach())


def test_feature_std_is_the_mean_standard_deviation_over_features() -> None:
    x = torch.randn(3, 400, 5) * torch.tensor([0.5, 1, 2, 3, 4])
    flat = x.reshape(-1, 5)
    assert feature_std(x).item() == pytest.approx(flat.std(0).mean().item(), rel=1e-4)
    assert feature_std(torch.ones(2, 3, 4)).item() == pytest.approx(1e-3, rel=1e-4)
    assert feature_std(x.bfloat16()).dtype == torch.float32
    assert feature_std(torch.randn(1, 1, 5)).item() == pytest.approx(1e-3, rel=1e-4)  # one row has no spread
