"""The regression loss: data2vec 2.0 (arXiv:2212.07525), sec. 3.1; smooth L1: data2vec (arXiv:2202.03555), eq. 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def regression_loss_sum(pred: Tensor, target: Tensor, scale: float, beta: float = 0.0) -> Tensor:
    """Scaled squared error, summed over everything, features included, in float32.

    Args:
        pred: (..., D) predictions.
        target: (..., D) targets of the same shape.
        scale: factor on every element; the image and speech recipes use 1 / sqrt(D).
        beta: 0 for the squared error; above 0, where smooth L1 turns from quadratic (over beta) to linear.

    Returns:
        Scalar float32.
    """
    pred, target = pred.float(), target.float()
    if beta == 0:
        return F.mse_loss(pred, target, reduction="sum") * scale
    return F.smooth_l1_loss(pred, target, reduction="sum", beta=beta) * scale
