"""Embeddings of tokens from counts of their neighbours.

Positive pointwise mutual information (Bullinaria and Levy, 2007, doi:10.3758/BF03193020), factored: what a softmax over
neighbours learns (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MAX_VOCAB_SIZE = 16384  # counts of all pairs, 4 GB
WINDOW = 10  # tokens; 5 and 20 are as good (docs/results/learning.md)
_OVERSAMPLING = 32  # columns beyond the wanted ones, for an accurate randomised factorisation


def count_neighbours(inputs: Iterable[Tensor], vocab_size: int, window: int) -> Tensor:
    """Count how often each token stands within ``window`` tokens of each other one.

    Args:
        inputs: (B, T) int64 token ids, batch by batch.
        vocab_size: number of ids, V.
        window: largest distance, in tokens.

    Returns:
        (V, V) int64, symmetric.
    """
    counts = torch.zeros(vocab_size * vocab_size, dtype=torch.int64)
    ids = torch.cat(list(inputs))
    for distance in range(1, min(window + 1, ids.shape[1])):
        pairs = ids[:, :-distance] * vocab_size + ids[:, distance:]
        counts += torch.bincount(pairs.flatten(), minlength=len(counts))
    matrix = counts.view(vocab_size, vocab_size)
    return matrix + matrix.T


def pointwise_mutual_information(counts: Tensor) -> Tensor:
    """Return log(count / count expected by chance), (V, V) float32; 0 where it is negative or nothing was counted."""
    counts = counts.float()
    totals = counts.sum(dim=1)
    expected = totals[:, None] * totals / totals.sum()
    return (counts / expected).log().clamp(min=0).where(counts > 0, 0)


def counted_embeddings(inputs: Iterable[Tensor], vocab_size: int, embed_dim: int, window: int = WINDOW) -> Tensor:
    """Factor the pointwise mutual information of neighbours into embeddings.

    Args:
        inputs: (B, T) int64 token ids, batch by batch.
        vocab_size: number of ids, V.
        embed_dim: features D, at most V.
        window: largest distance of neighbours, in tokens.

    Returns:
        (V, D) float32: left singular vectors times the roots of the singular values; 0 for tokens that do not occur.
    """
    information = pointwise_mutual_information(count_neighbours(inputs, vocab_size, window))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the randomised factorisation
        left, singular, _ = torch.svd_lowrank(information, min(vocab_size, embed_dim + _OVERSAMPLING))
    return left[:, :embed_dim] * singular[:embed_dim].sqrt()
