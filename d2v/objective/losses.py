"""Regression loss, data2vec 2.0 (arXiv:2212.07525), sec. 3.1, and the spread of targets and predictions.

Smooth L1: data2vec 1.0 (arXiv:2202.03555), eq. 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def regression_loss_sum(pred: Tensor, target: Tensor, scale: float, beta: float = 0.0) -> Tensor:
    """Return the scaled squared error (or smooth L1) in float32, summed over all dimensions, features included.

    Args:
        pred: (..., D) predictions.
        target: (..., D) targets of the same shape.
        scale: factor on every element; the image and speech recipes use 1 / sqrt(D).
        beta: 0 for the squared error; above 0 for smooth L1, quadratic (divided by beta) below it and linear above.

    Returns:
        Scalar float32.
    """
    error = pred.float() - target.float()  # the only tensor kept for the backward pass
    if beta == 0:
        return error.square().sum() * scale
    return F.smooth_l1_loss(error, error.new_zeros(()).expand_as(error), reduction="sum", beta=beta) * scale


@torch.no_grad()
def feature_std(x: Tensor) -> Tensor:
    """Return the spread of targets or predictions: ``sqrt(var + 1e-6)`` of each feature, averaged over features.

    The reference logs it as "target_var" and "pred_var"; the variance is unbiased.

    Args:
        x: (..., D) float; all leading dimensions are samples.

    Returns:
        0-dim float32; 1e-3 for constant features.
    """
    x = x.detach().float().flatten(0, -2)
    x = x - x.mean(dim=0)  # faster on a CPU than var over this dimension
    return (x.square().sum(dim=0) / max(1, len(x) - 1) + 1e-6).sqrt().mean()
