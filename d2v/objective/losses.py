"""Losses on the teacher's targets, and the spread of targets and predictions.

Regression: data2vec 2.0 (arXiv:2212.07525), sec. 3.1; smooth L1: data2vec 1.0 (arXiv:2202.03555), eq. 2. Contrastive:
InfoNCE (arXiv:1807.03748); among the tokens of one sample, the patch discrimination of Latent MIM (arXiv:2407.15837).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.types import Negatives

MAX_NEGATIVES = 1024  # of a micro-batch: the logits of all its masked tokens against all targets would not fit


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


def contrastive_loss_sum(
    pred: Tensor, target_BTD: Tensor, ids_mask: Tensor, temperature: float, negatives: Negatives
) -> Tensor:
    """Return InfoNCE in float32, summed over predictions: -log softmax over cosines to targets, at the own target.

    Equal targets of other tokens (a word that occurs twice) stay among the negatives: the gradient is that of a softmax
    in which a target counts as often as it occurs, so predictions learn how much likelier it is than by chance.

    Args:
        pred: (N, S, D) predictions, N = B * M, sample-major.
        target_BTD: (B, T, D) targets of all tokens.
        ids_mask: (N, S) int64, the token of each prediction, in [0, T).
        temperature: divides the cosines.
        negatives: "sample" for all other tokens of the same sample; "batch" for other tokens of any sample, at most
            ``MAX_NEGATIVES``, evenly spaced.

    Returns:
        Scalar float32.
    """
    with torch.autocast(pred.device.type, enabled=False):
        targets = F.normalize(target_BTD.float(), dim=-1)
        queries = F.normalize(pred.float(), dim=-1) / temperature
        num_samples, num_tokens, embed_dim = targets.shape
        queries = queries.reshape(num_samples, -1, embed_dim)  # (B, M * S, D)
        ids = ids_mask.reshape(num_samples, -1)
        if negatives == "sample":
            logits = queries @ targets.mT  # (B, M * S, T)
            return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
        ids = (ids + num_tokens * torch.arange(num_samples, device=ids.device)[:, None]).flatten()
        queries, targets = queries.flatten(0, 1), targets.flatten(0, 1)
        count = min(MAX_NEGATIVES, len(targets))
        others = torch.arange(count, device=ids.device) * len(targets) // count
        logits = (queries @ targets[others].T).masked_fill(ids[:, None] == others, -torch.inf)
        own = (queries * targets[ids]).sum(dim=-1, keepdim=True)
        return (torch.cat([own, logits], dim=1).logsumexp(dim=1) - own.squeeze(1)).sum()


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
