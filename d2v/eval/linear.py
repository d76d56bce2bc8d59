"""Linear probe: multinomial logistic regression on frozen, standardised features.

The protocol of CLIP (arXiv:2103.00020, appendix A): L-BFGS, the L2 strength chosen on a held-out part of the training
set, then a fit on all of it. Deviation: features are standardised, so that one coarse grid of strengths serves every
encoder. On raw Fashion-MNIST pixels (first 8,000 test images to train, last 2,000 to test) the result is 83.0 %.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from d2v.eval.features import check_probe_data, standardize

_INNER_FRACTION = 0.2  # of the training set, held out to choose C


@dataclass(frozen=True)
class LinearProbe:
    """Result of a linear probe.

    Attributes:
        accuracy: fraction of validation samples classified correctly, 0 to 1.
        c: chosen inverse L2 strength (scikit-learn's C: larger regularises less).
        converged: whether the final fit reached its tolerance within ``max_iter`` iterations.
        inner_accuracies: accuracy on the held-out part of the training set for every C tried, ascending; empty if there
            was only one.
    """

    accuracy: float
    c: float
    converged: bool
    inner_accuracies: dict[float, float] = field(default_factory=dict)

    @property
    def edge(self) -> str | None:
        """The end of the grid that was chosen, "smallest" or "largest", beyond which a better C may lie; None inside.

        The grid is tried from its smallest value on, and left early only where two in a row are worse than the best.
        """
        tried = list(self.inner_accuracies)
        return {tried[0]: "smallest", tried[-1]: "largest"}.get(self.c) if len(tried) > 1 else None


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    c_grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    seed: int = 0,
    *,
    max_iter: int = 500,
) -> LinearProbe:
    """Fit a linear classifier on the training features and measure it on the validation features.

    C is chosen on a held-out fifth of the training set, the smallest of equally good ones; the classifier is then
    fitted to all of it. The validation set is used once, at the end.

    Args:
        train_x: (N, D) float features.
        train_y: (N,) int class labels; any integers.
        val_x: (V, D) float features.
        val_y: (V,) int class labels. A class that is missing from ``train_y`` is never predicted.
        c_grid: values of C to try; C multiplies the loss summed over samples, so the best one falls as N grows.
        seed: seed of the split that chooses C.
        max_iter: largest number of L-BFGS iterations of a fit. Stopping early regularises; the result reports it.

    Returns:
        The accuracy, and how it was reached.

    Raises:
        ValueError: the grid is empty or a C is not positive, there are fewer than two classes or too few samples to
            hold any out, or the data are invalid (see :func:`d2v.eval.features.check_probe_data`).
    """
    check_probe_data(train_x, train_y, val_x, val_y)
    grid = _check_grid(c_grid)
    train_labels, val_labels = train_y.cpu().numpy(), val_y.cpu().numpy()
    num_classes = len(np.unique(train_labels))
    if num_classes < 2:
        raise ValueError(f"a linear probe needs at least two classes, the {len(train_x)} training samples have one")

    inner_accuracies: dict[float, float] = {}
    if len(grid) > 1:
        inner_accuracies = _score_grid(train_x.cpu(), train_labels, grid, seed, max_iter)
    # max takes the first of equal values, and the grid ascends: the strongest regularisation.
    c = max(inner_accuracies, key=lambda c: inner_accuracies[c]) if inner_accuracies else grid[0]

    model = LogisticRegression(C=c, max_iter=max_iter)
    train_features, val_features = (x.numpy() for x in standardize(train_x.cpu(), val_x.cpu()))
    converged = fit_quietly(model, train_features, train_labels)
    accuracy = float(np.mean(model.predict(val_features) == val_labels))
    return LinearProbe(accuracy, c, converged, inner_accuracies)


def _check_grid(c_grid: Sequence[float]) -> list[float]:
    grid = sorted({float(c) for c in c_grid})
    if not grid or not all(0 < c < math.inf for c in grid):
        raise ValueError(f"c_grid={list(c_grid)} must hold at least one value, all positive and finite")
    return grid


def _score_grid(train_x: Tensor, labels: np.ndarray, grid: list[float], seed: int, max_iter: int) -> dict[float, float]:
    """Return accuracies on a held-out part of the training set, C ascending, until two in a row are below the best.

    Weakly regularised fits on many features are the slowest by far and rarely the best.
    """
    is_inner_val = split_stratified(labels, seed)
    if not is_inner_val.any():
        raise ValueError(
            f"{len(labels)} training samples, one a class, leave none to choose C on: set c_grid to a single value"
        )
    # The held-out part must not influence the standardisation either.
    fit_x, held_out_x = (x.numpy() for x in standardize(train_x[~is_inner_val], train_x[is_inner_val]))
    accuracies = {}
    for c in grid:
        # No warm start: stopping early regularises, too, so every fit must start from the same point.
        model = LogisticRegression(C=c, max_iter=max_iter)
        fit_quietly(model, fit_x, labels[~is_inner_val])
        accuracies[c] = float(np.mean(model.predict(held_out_x) == labels[is_inner_val]))
        if len(accuracies) > 2 and max(accuracies.values()) > max(list(accuracies.values())[-2:]):
            break
    return accuracies


def split_stratified(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return (N,) bool, True = held out: a fifth of every class, rounded up, but never the last sample of a class.

    scikit-learn's stratified splits refuse classes with a single sample.
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: min(math.ceil(_INNER_FRACTION * len(members)), len(members) - 1)]] = True
    return held_out


def fit_quietly(model: LogisticRegression, x: Any, y: np.ndarray) -> bool:
    """Fit in place, to an array or a sparse matrix; return whether the solver converged, instead of its warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return converged
