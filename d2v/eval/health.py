"""Measures of collapse that need no labels.

They take (N, D) features of N samples on any device, compute in float32 or better regardless of input dtype and
autocast, and return a 0-dim tensor, so that the caller decides when to wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RANKME_EPS = 1e-7  # the paper's, for float32


def effective_rank(features: Tensor) -> Tensor:
    """RankMe: the exponential of the entropy of the normalised singular values (Garrido et al. 2023, arXiv:2210.02885).

    p_k = sigma_k / sum(sigma) + 1e-7 and RankMe = exp(-sum p_k log p_k). The features are not centred,
    as in the paper: a large common mean counts as one dominant direction.

    The singular values come from the eigenvalues of the smaller Gram matrix in float64, many times cheaper than an SVD.
    That resolves singular values down to about 1e-8 of the largest, below the paper's epsilon. On a GPU, PyTorch's
    eigenvalue solver itself waits for the device: log it every few hundred steps, not at each.

    Args:
        features: (N, D) float.

    Returns:
        0-dim float32: about 1 (all features on a line, or all zero) to min(N, D); NaN if a feature is not finite.

    Raises:
        ValueError: the features are not (N, D), or empty.
    """
    _check(features)
    x = features.detach().cpu().double()  # a small matrix; not every accelerator has float64
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    finite = gram.isfinite().all()
    # Rounding can make zero eigenvalues slightly negative; the solver refuses what is not finite.
    sigma = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0)).clamp(min=0).sqrt()
    p = sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny) + _RANKME_EPS
    return torch.where(finite, torch.exp(-(p * p.log()).sum()), torch.nan).float()


def relative_spread(features: Tensor) -> Tensor:
    """Spread of the features over samples, relative to their size.

    The root of the mean (biased) variance over samples, divided by the root mean square of all features. Unlike a
    standard deviation it does not change if all features are scaled: 0.01 means that 99.99 % of the features' energy
    is a vector that all samples share.

    Args:
        features: (N, D) float.

    Returns:
        0-dim float32: 0 (all samples have the same features) to 1 (the features' mean over samples is zero).

    Raises:
        ValueError: the features are not (N, D), or empty.
    """
    _check(features)
    x = features.detach().float()
    rms = x.square().mean().sqrt()
    return x.var(0, correction=0).mean().sqrt() / rms.clamp(min=torch.finfo(rms.dtype).tiny)


def _check(x: Tensor) -> None:
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"expected (N, D) features of at least one sample, got shape {tuple(x.shape)}")
