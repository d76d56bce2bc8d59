"""Targets of the student: the mean of the teacher's top-K layers, data2vec 2.0 (arXiv:2212.07525), sec. 3.1.

Our own: :func:`batch_norm` with part of each sample's mean. Instance norm removes from targets what tells samples
apart; batch norm keeps what all tokens of a sample share, which is easy to predict. Features gain in between
(docs/results/learning.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.types import TargetNorm


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise (B, T, D) to zero mean and unit biased variance over T, per sample and channel, without affine."""
    x = x - x.mean(dim=1, keepdim=True)  # two means are several times as fast on a CPU as var_mean over this dimension
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


def layer_norm(x: Tensor) -> Tensor:
    """Normalise (B, T, D) to zero mean and unit biased variance over D, without affine."""
    return F.layer_norm(x, x.shape[-1:])


def batch_norm(x: Tensor, sample_mean_share: float = 1.0, eps: float = 1e-5) -> Tensor:
    """Normalise (B, T, D) over B and T, per channel, without affine.

    Args:
        x: (B, T, D) float32.
        sample_mean_share: share s of each sample's mean over tokens that stays. With m the sample's mean and M that of
            all: (x - m + s (m - M)) / sqrt(mean over B and T of its square + eps). 1 is batch norm.
        eps: added to the variance.
    """
    sample_mean = x.mean(dim=1, keepdim=True)
    x = x - sample_mean + sample_mean_share * (sample_mean - sample_mean.mean(dim=0, keepdim=True))
    return x * torch.rsqrt(x.square().mean(dim=(0, 1), keepdim=True) + eps)


def normalize_patches(patches_BTV: Tensor) -> Tensor:
    """Normalise the values of every patch to zero mean and unit variance: MAE (arXiv:2111.06377), table 1d."""
    patches = patches_BTV.float()
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(var + 1e-6)


def normalize_targets(x: Tensor, norms: Sequence[TargetNorm], sample_mean_share: float = 1.0) -> Tensor:
    """Apply ``norms`` in order, in float32.

    Args:
        x: (B, T, D) one layer's output or the average of several, prefix tokens stripped.
        norms: any of "instance" (over tokens, :func:`instance_norm`), "layer" (over features, no affine) and "batch"
            (over tokens and samples of the micro-batch, :func:`batch_norm`).
        sample_mean_share: of the norm "batch".
    """
    apply: dict[TargetNorm, Callable[[Tensor], Tensor]] = {
        "instance": instance_norm,
        "layer": layer_norm,
        "batch": partial(batch_norm, sample_mean_share=sample_mean_share),
    }
    x = x.float()
    for norm in norms:
        x = apply[norm](x)
    return x
