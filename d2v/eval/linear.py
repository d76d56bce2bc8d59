"""Linear probe: multinomial logistic regression on frozen, standardised features.

The protocol of CLIP (arXiv:2103.00020, appendix A): the L2 strength chosen on a held-out part of the training set, then
a fit on all of it. Deviations: features are standardised, so that one coarse grid of strengths serves every encoder;
and fits converge (:mod:`d2v.eval.logistic`), each starting from that of the next stronger penalty. On raw Fashion-MNIST
pixels (first 8,000 test images to train, last 2,000 to test) the result is 83.0 %.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from d2v.eval.features import check_probe_data, standardize
from d2v.eval.logistic import Logistic, fit_logistic

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
    max_iter: int = 50,
    tell: Callable[[str], None] = lambda line: None,
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
        max_iter: largest number of Newton steps of a fit. Stopping early regularises; the result reports it.
        tell: called with a line before every fit.

    Returns:
        The accuracy, and how it was reached.

    Raises:
        ValueError: the grid is empty or a C is not positive, there are fewer than two classes or too few samples to
            hold any out, or the data are invalid (see :func:`d2v.eval.features.check_probe_data`).
    """
    check_probe_data(train_x, train_y, val_x, val_y)
    grid = _check_grid(c_grid)
    train_x, val_x, val_y = train_x.cpu(), val_x.cpu(), val_y.cpu()
    classes, train_ids = train_y.cpu().unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a linear probe needs at least two classes, the {len(train_x)} training samples have one")

    inner_accuracies: dict[float, float] = {}
    start, c = None, grid[0]
    if len(grid) > 1:
        inner_accuracies, fits = _score_grid(train_x, train_ids, grid, seed, max_iter, tell)
        # max takes the first of equal values, and the grid ascends: the strongest regularisation.
        c = max(inner_accuracies, key=lambda c: inner_accuracies[c])
        start = fits[c]

    tell(f"linear probe, C={c:g}, fit to {len(train_x):,} samples")
    train_features, val_features = standardize(train_x, val_x)
    with torch.inference_mode():
        fit = fit_logistic(train_features, train_ids, len(classes), c, start, max_iter)
        accuracy = float((classes[fit.predict(val_features)] == val_y).double().mean())
    return LinearProbe(accuracy, c, fit.converged, inner_accuracies)


def _check_grid(c_grid: Sequence[float]) -> list[float]:
    grid = sorted({float(c) for c in c_grid})
    if not grid or not all(0 < c < math.inf for c in grid):
        raise ValueError(f"c_grid={list(c_grid)} must hold at least one value, all positive and finite")
    return grid


def _score_grid(
    train_x: Tensor, train_ids: Tensor, grid: list[float], seed: int, max_iter: int, tell: Callable[[str], None]
) -> tuple[dict[float, float], dict[float, Logistic]]:
    """Return accuracies on a held-out part of the training set, C ascending, until two in a row are below the best.

    Weakly regularised fits on many features are the slowest by far and rarely the best.

    Returns:
        For each C tried the accuracy, and the fit.
    """
    is_inner_val = torch.from_numpy(split_stratified(train_ids.numpy(), seed))
    if not is_inner_val.any():
        raise ValueError(
            f"{len(train_x)} training samples, one a class, leave none to choose C on: set c_grid to a single value"
        )
    # The held-out part must not influence the standardisation either.
    fit_x, held_out_x = standardize(train_x[~is_inner_val], train_x[is_inner_val])
    fit_ids, held_out_ids = train_ids[~is_inner_val], train_ids[is_inner_val]
    accuracies: dict[float, float] = {}
    fits: dict[float, Logistic] = {}
    fit = None
    with torch.inference_mode():
        for i, c in enumerate(grid, 1):
            tell(f"linear probe, C={c:g} ({i} of up to {len(grid)})")
            fit = fits[c] = fit_logistic(fit_x, fit_ids, int(train_ids.max()) + 1, c, fit, max_iter)
            accuracies[c] = float((fit.predict(held_out_x) == held_out_ids).double().mean())
            if len(accuracies) > 2 and max(accuracies.values()) > max(list(accuracies.values())[-2:]):
                break
    return accuracies, fits


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
