"""Baseline for text: linear and kNN probes on TF-IDF vectors of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from d2v.eval.knn import count_votes
from d2v.eval.linear import LinearProbe, fit_quietly, split_stratified


def tfidf_linear(
    train_texts: Sequence[str],
    train_y: Tensor,
    val_texts: Sequence[str],
    val_y: Tensor,
    c_grid: Sequence[float] = (0.3, 1.0, 3.0, 10.0, 30.0),
    seed: int = 0,
) -> LinearProbe:
    """Fit logistic regression, with C chosen on a held-out fifth of the training texts.

    If every class has only one text, none can be held out, and C is the middle of the grid.

    Args:
        train_texts: N texts to fit on.
        train_y: (N,) int class labels.
        val_texts: V texts to classify.
        val_y: (V,) int class labels.
        c_grid: inverse L2 strengths to try.
        seed: seed of the split that chooses C.

    Raises:
        ValueError: the training texts have only one class, or no words.
    """
    labels = train_y.numpy()
    if len(np.unique(labels)) < 2:
        raise ValueError(f"a linear probe needs at least two classes, the {len(labels)} training samples have one")
    is_inner = split_stratified(labels, seed)
    if not is_inner.any():
        return _fit(sorted(c_grid)[len(c_grid) // 2], *_vectors(train_texts, val_texts), labels, val_y)
    inner_train = [text for text, held_out in zip(train_texts, is_inner, strict=True) if not held_out]
    inner_val = [text for text, held_out in zip(train_texts, is_inner, strict=True) if held_out]
    x, z = _vectors(inner_train, inner_val)
    held_out = torch.from_numpy(labels[is_inner])
    scores = {c: _fit(c, x, z, labels[~is_inner], held_out).accuracy for c in sorted(c_grid)}
    best = max(scores, key=lambda c: scores[c])
    final = _fit(best, *_vectors(train_texts, val_texts), labels, val_y)
    return replace(final, inner_accuracies=scores if len(scores) > 1 else {})


def tfidf_knn(
    train_texts: Sequence[str],
    train_y: Tensor,
    val_texts: Sequence[str],
    val_y: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the accuracy of weighted kNN by cosine, as :func:`d2v.eval.knn.knn_accuracy`."""
    x, z = _vectors(train_texts, val_texts)
    classes, train_ids = train_y.unique(return_inverse=True)
    num_correct = 0
    for start in range(0, z.shape[0], 512):
        similarity = torch.from_numpy(np.asarray((z[start : start + 512] @ x.T).todense(), dtype=np.float32))
        votes = count_votes(similarity, train_ids, len(classes), min(k, len(train_y)), temperature)
        num_correct += int((classes[votes.argmax(1)] == val_y[start : start + 512]).sum())
    return num_correct / len(val_y)


def _vectors(train_texts: Sequence[str], val_texts: Sequence[str]) -> tuple[Any, Any]:
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return vectorizer.fit_transform(train_texts), vectorizer.transform(val_texts)


def _fit(c: float, train_x: Any, val_x: Any, train_y: np.ndarray, val_y: Tensor) -> LinearProbe:
    model = LogisticRegression(C=c, max_iter=300)
    converged = fit_quietly(model, train_x, train_y)
    return LinearProbe(float(model.score(val_x, val_y.numpy())), c, converged)
