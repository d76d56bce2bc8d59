"""The losses on targets against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from d2v.objective import losses
from d2v.objective.losses import contrastive_loss_sum, feature_std, regression_loss_sum
from d2v.types import Negatives


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


def info_nce(pred: Tensor, target: Tensor, ids: Tensor, temperature: float, candidates: list[tuple[int, int]]) -> float:
    """InfoNCE in loops; ``candidates`` are (sample, token); a prediction's own target is left out."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a @ b) / (a.norm() * b.norm()))

    num_masks = len(pred) // len(target)
    total = 0.0
    for n, row in enumerate(ids.tolist()):
        for i, token in enumerate(row):
            own = (n // num_masks, token)
            negatives = [c for c in candidates if c != own]
            logits = [cosine(pred[n, i], target[b, t]) / temperature for b, t in [own, *negatives]]
            total += math.log(sum(math.exp(x - logits[0]) for x in logits))
    return total


def _masked(num_samples: int = 3, num_masks: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets of all of 6 tokens, and the ids of the 4 masked ones."""
    ids = torch.stack([torch.randperm(6)[:4].sort().values for _ in range(num_samples * num_masks)])
    return torch.randn(num_samples * num_masks, 4, 5), torch.randn(num_samples, 6, 5), ids


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_within_a_sample_matches_loops(temperature: float) -> None:
    pred, target, ids = _masked()
    expected = sum(
        info_nce(pred[2 * b : 2 * b + 2], target[b : b + 1], ids[2 * b : 2 * b + 2], temperature, [
            (0, t) for t in range(6)
        ])
        for b in range(3)
    )  # fmt: skip
    assert float(contrastive_loss_sum(pred, target, ids, temperature, "sample")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("most", [1024, 18, 7])
def test_contrast_in_the_batch_matches_loops(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MAX_NEGATIVES", most)
    pred, target, ids = _masked()
    chosen = [i * 18 // min(most, 18) for i in range(min(most, 18))]
    expected = info_nce(pred, target, ids, 0.2, [divmod(i, 6) for i in chosen])
    assert float(contrastive_loss_sum(pred, target, ids, 0.2, "batch")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("negatives", ["sample", "batch"])
def test_contrast_has_no_use_for_lengths_and_computes_in_float32(negatives: Negatives) -> None:
    pred, target, ids = _masked()
    loss = contrastive_loss_sum(pred, target, ids, 0.1, negatives)
    assert loss.dtype == torch.float32
    assert float(contrastive_loss_sum(3 * pred, target / 7, ids, 0.1, negatives)) == pytest.approx(
        float(loss), rel=1e-5
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert float(contrastive_loss_sum(pred, target, ids, 0.1, negatives)) == float(loss)


def test_contrast_learns_how_much_likelier_a_target_is_than_by_chance() -> None:
    """Targets of two words in one context: a descent on InfoNCE ranks them by lift, on the squared error by count."""
    words = torch.eye(3)
    tokens = torch.tensor([0] * 6 + [1] * 2 + [2] * 8)  # word 0 is common, in the context and outside
    target = words[tokens][None]
    ids = torch.tensor([[0, 1, 2, 6, 7]])  # the context's: three of six 0s, two of two 1s
    context = torch.zeros(3, requires_grad=True)
    squared = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([context, squared], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        pred = (context + 1e-3).expand(1, 5, 3)
        loss = contrastive_loss_sum(pred, target, ids, 0.5, "batch")
        loss = loss + regression_loss_sum(squared.expand(1, 5, 3), target[:, ids[0]], 1.0)
        loss.backward()
        optimizer.step()
    assert context[1] > context[0] > context[2]
    assert squared[0] > squared[1] > squared[2]


def test_feature_std_is_the_mean_standard_deviation_over_features() -> None:
    x = torch.randn(3, 400, 5) * torch.tensor([0.5, 1, 2, 3, 4])
    flat = x.reshape(-1, 5)
    assert feature_std(x).item() == pytest.approx(flat.std(0).mean().item(), rel=1e-4)
    assert feature_std(torch.ones(2, 3, 4)).item() == pytest.approx(1e-3, rel=1e-4)
    assert feature_std(x.bfloat16()).dtype == torch.float32
    assert feature_std(torch.randn(1, 1, 5)).item() == pytest.approx(1e-3, rel=1e-4)  # one row has no spread
