import numpy as np
import pytest

from d2v.eval import scores


def test_matthews_by_hand() -> None:
    predicted, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 1, 1, 0, 0, 0])
    tp, tn, fp, fn = 2, 2, 1, 1
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    found = scores.matthews(predicted, labels)
    assert found["matthews"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert scores.matthews(np.ones(4, int), np.array([0, 1, 0, 1]))["matthews"] == 0


def test_f1_is_that_of_class_one() -> None:
    found = scores.accuracy_f1(np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1]))
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["accuracy_f1"] == pytest.approx((found["f1"] + 0.5) / 2)


def test_correlations_by_hand() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0, 5.0])
    found = scores.pearson_spearman(labels**3, labels)
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef(labels**3, labels)[0, 1])
    assert found["pearson_spearman"] == pytest.approx((1 + found["pearson"]) / 2)
    assert scores.pearson_spearman(np.ones(5), labels) == {"pearson_spearman": 0, "pearson": 0, "spearman": 0}


def test_top_k_counts_a_class_among_the_k_best() -> None:
    values = np.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    assert scores.top_k(values, np.array([2, 0, 0]), (1, 2)) == pytest.approx({"top1": 1 / 3, "top2": 1.0})


def test_per_class_rows_are_true_classes() -> None:
    matrix, table = scores.per_class(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(table[:, :2], [[1, 0.5], [2 / 3, 1], [0, 0]])
