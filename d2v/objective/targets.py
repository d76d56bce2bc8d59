"""Targets of the student: the mean of the teacher's top-K layers, data2vec 2.0 (arXiv:2212.07525), sec. 3.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


_NORMS: dict[TargetNorm, Callable[[Tensor], Tensor]] = {"instance": instance_norm, "layer": layer_norm}


def normalize_targets(x: Tensor, norms: Sequence[TargetNorm]) -> Tensor:
    """Apply ``norms`` in order, in float32.

    Args:
        x: (B, T, D) one layer's output or the average of several, prefix tokens stripped.
        norms: any of "instance" (over tokens, :func:`instance_norm`) and "layer" (over features, no affine).
    """
    x = x.float()
    for norm in norms:
        x = _NORMS[norm](x)
    return x
