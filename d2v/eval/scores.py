"""Scores of classification and regression as defined by ImageNet and GLUE (arXiv:1804.07461), as fractions.

Computed by scikit-learn and SciPy. The correlation of constant predictions is undefined and counts as 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics

Scores = dict[str, float]


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Return the share of correct classes."""
    return {"accuracy": float(metrics.accuracy_score(labels, predicted))}


def accuracy_f1(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Return accuracy, F1 of class 1, and their mean: MRPC and QQP."""
    right = accuracy(predicted, labels)["accuracy"]
    f1 = float(metrics.f1_score(labels, predicted, zero_division=0))
    return {"accuracy_f1": (right + f1) / 2, "accuracy": right, "f1": f1}


def matthews(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Return the Matthews correlation: CoLA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class only
        return {"matthews": float(metrics.matthews_corrcoef(labels, predicted)), **accuracy(predicted, labels)}


def pearson_spearman(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Return Pearson and Spearman correlations of (N,) numbers, and their mean: STS-B."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        correlations = [float(f(predicted, labels).statistic) for f in (stats.pearsonr, stats.spearmanr)]
    pearson, spearman = (0.0 if np.isnan(value) else value for value in correlations)
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def unweighted_accuracy(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """Return the mean recall of the classes that occur, accuracy, and the mean of their F1: sounds, emotions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that do not occur
        recall = float(metrics.balanced_accuracy_score(labels, predicted))
    f1 = float(metrics.f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))
    return {"unweighted_accuracy": recall, **accuracy(predicted, labels), "macro_f1": f1}


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> Scores:
    """Return the mean over classes of the average precision (AudioSet's mAP), of classes that occur.

    Args:
        scores: (N, C), higher for classes that a sample is more likely to have.
        labels: (N, C) bool, the classes of every sample.
    """
    occur = labels.any(0)
    if not occur.any():
        return {"map": 0.0}
    return {"map": float(metrics.average_precision_score(labels[:, occur], scores[:, occur], average="macro"))}


def top_k(scores: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)) -> Scores:
    """Return the share of samples with their class among the k highest of (N, C) scores; k is at most C."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return {f"top{k}": float((order[:, :k] == labels[:, None]).any(1).mean()) for k in ks}


def per_class(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the confusion matrix (C, C), rows are true classes, and precision, recall, F1 (C, 3); 0 if undefined."""
    classes = np.arange(num_classes)
    matrix = metrics.confusion_matrix(labels, predicted, labels=classes)
    table = metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)[:3]
    return matrix, np.stack(table, axis=1)


Score = Callable[[np.ndarray, np.ndarray], Scores]
SCORES: dict[str, Score] = {
    "accuracy": accuracy,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "pearson_spearman": pearson_spearman,
    "unweighted_accuracy": unweighted_accuracy,
}
