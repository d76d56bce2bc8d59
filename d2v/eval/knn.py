"""Weighted k-nearest-neighbour classification of frozen features.

Wu et al. 2018 (arXiv:1805.01978, sec. 3.4), as in DINO (arXiv:2104.14294): the k training samples of
highest cosine similarity s vote for their class with weight exp(s / temperature).

Deviation: every feature is standardised on the training set first. Otherwise a mean shared by all samples, or a few
features of large scale, dominate the cosine. On raw Fashion-MNIST pixels (first 8,000 test images to search, last 2,000
to classify) this gives 82.4 % instead of 79.2 %, and the result hardly depends on k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from d2v.eval.features import check_probe_data, standardize


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 1024,
) -> float:
    """Return the accuracy of weighted k-nearest-neighbour classification.

    Args:
        train_x: (N, D) float features to search, on any device.
        train_y: (N,) int class labels; any integers.
        val_x: (V, D) float features to classify, on the same device.
        val_y: (V,) int class labels. A class that is missing from ``train_y`` is never predicted.
        k: number of neighbours that vote.
        temperature: temperature of the votes; smaller values give the nearest neighbours more weight.
        batch_size: samples classified at once; memory is ``batch_size * N`` floats.

    Returns:
        The fraction of validation samples classified correctly, 0 to 1.

    Raises:
        ValueError: k is outside of 1 to N, the temperature is not positive, or the data are invalid (see
            :func:`d2v.eval.features.check_probe_data`).
    """
    check_probe_data(train_x, train_y, val_x, val_y)
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k={k} neighbours of {len(train_x)} training samples: choose 1 to {len(train_x)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive (DINO uses 0.07)")

    # The last digits of similarities decide between neighbours: never in half precision, even inside autocast.
    with torch.inference_mode(), torch.autocast(train_x.device.type, enabled=False):
        train_x, val_x = (F.normalize(x, dim=1) for x in standardize(train_x, val_x))
        classes, train_ids = train_y.unique(return_inverse=True)
        num_correct = 0
        for queries, labels in zip(val_x.split(batch_size), val_y.split(batch_size), strict=True):
            votes = count_votes(queries @ train_x.T, train_ids, len(classes), k, temperature)
            num_correct += int((classes[votes.argmax(1)] == labels).sum())
    return num_correct / len(val_x)


def count_votes(similarity: Tensor, train_ids: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Return votes (Q, num_classes) of each query's k most similar training samples; ``similarity`` is (Q, N)."""
    nearest, neighbours = similarity.topk(k, dim=1)
    # Relative to the nearest neighbour: the winner is the same, and exp cannot overflow.
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    votes = similarity.new_zeros(len(similarity), num_classes)
    return votes.scatter_add_(1, train_ids[neighbours], weights)
