"""Scores against formulas written out here, over all small cases (degenerate ones included) and random ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from d2v.eval import scores

Pairs = list[tuple[int, int]]  # of a prediction and a label
quick = settings(deadline=None, max_examples=80)


def ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def arrays(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = np.array(pairs).T
    return predicted, labels


def assert_binary_scores_match(tp: int, fp: int, fn: int, tn: int) -> None:
    pairs = [(1, 1)] * tp + [(1, 0)] * fp + [(0, 1)] * fn + [(0, 0)] * tn
    predicted, labels = np.random.default_rng(0).permutation(pairs).T
    right, f1 = (tp + tn) / len(pairs), ratio(2 * tp, 2 * tp + fp + fn)
    matthews = ratio(tp * tn - fp * fn, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5)
    assert scores.accuracy(predicted, labels) == pytest.approx({"accuracy": right})
    expected = {"accuracy_f1": (right + f1) / 2, "accuracy": right, "f1": f1}
    assert scores.accuracy_f1(predicted, labels) == pytest.approx(expected)
    assert scores.matthews(predicted, labels) == pytest.approx({"matthews": matthews, "accuracy": right})


def test_binary_scores_for_all_small_confusions() -> None:
    """One class predicted, one class true, all right and all wrong are among them."""
    for counts in itertools.product((0, 1, 3), repeat=4):
        if sum(counts):
            assert_binary_scores_match(*counts)


@quick
@given(st.tuples(*[st.integers(0, 2000)] * 4).filter(any))
def test_binary_scores_for_random_confusions(counts: tuple[int, int, int, int]) -> None:
    assert_binary_scores_match(*counts)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """From covariances, which are exact for small integers."""
    n = len(x)
    xy, xx, yy = (n * (a * b).sum() - a.sum() * b.sum() for a, b in ((x, y), (x, x), (y, y)))
    return ratio(xy, (xx * yy) ** 0.5)


def ranks(x: np.ndarray) -> np.ndarray:
    """Twice the average rank: ties share the mean of their places."""
    return 2 * (x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) + 1


@quick
@given(st.sampled_from([1, 3, 500]).flatmap(lambda n: st.lists(st.tuples(*[st.integers(-n, n)] * 2), min_size=2)))
@example([(2, 0), (2, 1), (2, 5)])  # constant predictions
@example([(0, 2), (1, 2), (5, 2)])  # constant labels
@example([(2, 3), (2, 3)])  # both
@example([(1, 4), (2, 3)])  # two samples
@example([(x**3, x) for x in range(-5, 6)])  # monotonous, not linear
@example([(1, 1), (1, 2), (2, 1), (3, 3), (3, 3)])  # ties
def test_correlations(pairs: Pairs) -> None:
    predicted, labels = arrays(pairs)
    p, s = pearson(predicted, labels), pearson(ranks(predicted), ranks(labels))
    expected = {"pearson_spearman": (p + s) / 2, "pearson": p, "spearman": s}
    assert scores.pearson_spearman(predicted / 8, 2.5 + labels / 4) == pytest.approx(expected, abs=1e-9)


@quick
@given(st.integers(1, 7).flatmap(lambda c: st.lists(st.lists(st.integers(0, 6), min_size=c, max_size=c), min_size=1)))
@example([[0] * 6] * 6)  # constant scores
def test_top_k_counts_the_scores_ahead(rows: list[list[int]]) -> None:
    """Of equal scores, the lower class is ahead, as in argmax."""
    num_classes = len(rows[0])
    labels = [i % num_classes for i in range(len(rows))]
    ahead = [
        sum(score > row[label] or (score == row[label] and c < label) for c, score in enumerate(row))
        for row, label in zip(rows, labels, strict=True)
    ]
    ks = range(1, num_classes + 1)
    expected = {f"top{k}": sum(a < k for a in ahead) / len(rows) for k in ks}
    found = scores.top_k(np.array(rows) / 6, np.array(labels), ks)
    assert found == pytest.approx(expected)
    assert found["top1"] == pytest.approx(scores.accuracy(np.array(rows).argmax(1), np.array(labels))["accuracy"])


@pytest.mark.parametrize("one_class", [False, True])
def test_top_k_matches_scikit_learn_and_torchmetrics(one_class: bool) -> None:
    rng = np.random.default_rng(0)
    for num_samples, num_classes in itertools.product((1, 2, 40), (6, 11)):
        values = rng.standard_normal((num_samples, num_classes))
        labels = np.full(num_samples, 2) if one_class else rng.integers(0, num_classes, num_samples)
        found = scores.top_k(values, labels)
        assert found.keys() == {"top1", "top5"}
        for k in (1, 5):
            theirs = top_k_accuracy_score(labels, values, k=k, labels=range(num_classes))
            tensors = torch.from_numpy(values), torch.from_numpy(labels)
            other = multiclass_accuracy(*tensors, num_classes=num_classes, top_k=k, average="micro")
            assert found[f"top{k}"] == pytest.approx(theirs) == pytest.approx(other.item())


@quick
@given(st.integers(0, 3).flatmap(lambda c: st.lists(st.tuples(st.integers(0, c), st.integers(0, 3)), min_size=1)))
@example([(1, 0), (1, 1), (1, 2)])  # one class predicted
@example([(0, 1), (1, 1), (2, 1)])  # one class true
@example([(2, 2)])  # both
@example([(0, 1), (1, 0)])  # none right
def test_per_class(pairs: Pairs) -> None:
    matrix, table = scores.per_class(*arrays(pairs), 4)
    for c in range(4):
        assert matrix[c].tolist() == [pairs.count((other, c)) for other in range(4)]  # rows are true classes
        hits = pairs.count((c, c))
        precision = ratio(hits, sum(p == c for p, _ in pairs))
        recall = ratio(hits, sum(label == c for _, label in pairs))
        f1 = ratio(2 * precision * recall, precision + recall)
        assert table[c].tolist() == pytest.approx([precision, recall, f1])


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
@example([(3, 0), (0, 0), (1, 1)])  # a class that is predicted and does not occur
def test_unweighted_accuracy_is_a_mean_over_the_classes_that_occur(pairs: Pairs) -> None:
    found = scores.unweighted_accuracy(*arrays(pairs))
    occur = sorted({label for _, label in pairs})
    recalls, f1s = [], []
    for c in occur:
        hits = pairs.count((c, c))
        recalls.append(ratio(hits, sum(label == c for _, label in pairs)))
        f1s.append(ratio(2 * hits, sum(p == c for p, _ in pairs) + sum(label == c for _, label in pairs)))
    assert found["unweighted_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"] == pytest.approx(np.mean(f1s))
    assert found["accuracy"] == pytest.approx(np.mean([p == label for p, label in pairs]))


def test_mean_average_precision_leaves_out_classes_that_do_not_occur() -> None:
    rng = np.random.default_rng(1)
    values, labels = rng.standard_normal((50, 5)), rng.random((50, 5)) < 0.3
    labels[:, 2] = False
    expected = np.mean([average_precision_score(labels[:, c], values[:, c]) for c in (0, 1, 3, 4)])
    assert scores.mean_average_precision(values, labels)["map"] == pytest.approx(expected, abs=1e-12)
    assert scores.mean_average_precision(values, np.zeros((50, 5), bool)) == {"map": 0.0}
