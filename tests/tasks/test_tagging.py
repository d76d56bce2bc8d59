"""Tagging: any number of classes a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from d2v.data.keys import SampleKey
from d2v.data.source import Sample, labels_of
from d2v.tasks.classification import Classification
from d2v.tasks.tagging import Tagging
from d2v.types import Batch

TASK = Tagging(["cat", "dog", "rain"])


def batch(*labels: tuple[int, ...]) -> Batch:
    samples = [Sample(torch.zeros(1), SampleKey(0, i), label) for i, label in enumerate(labels)]
    return Batch("spectrogram", torch.zeros(len(labels), 1), torch.arange(len(labels)), labels=labels_of(samples))


def test_the_loss_is_a_mean_over_classes_summed_over_samples() -> None:
    outputs = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    loss = TASK.loss(outputs, batch((0, 2), (1,)))
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = outputs.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / 3
    torch.testing.assert_close(loss.sum, expected)
    assert int(loss.count) == 2
    with pytest.raises(ValueError, match="separator"):
        TASK.loss(outputs, Batch("spectrogram", outputs, torch.arange(2), labels=torch.tensor([0, 1])))


def test_the_score_is_scikit_learns_of_the_classes_that_occur() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.random((40, 3))
    labels = [tuple(np.flatnonzero(row)) or (0,) for row in rng.random((40, 3)) < [0.5, 0.2, 0.0]]
    truth = np.zeros((40, 3), dtype=int)
    for row, numbers in zip(truth, labels, strict=True):
        row[list(numbers)] = 1
    assert not truth[:, 2].any()
    expected = np.mean([average_precision_score(truth[:, c], predictions[:, c]) for c in (0, 1)])
    assert TASK.score(list(predictions), labels) == {"map": pytest.approx(expected, abs=1e-12)}
    assert TASK.score(list(predictions), [()] * 40) == {"map": 0.0}


def test_predictions_are_probabilities_of_each_class() -> None:
    (prediction,) = TASK.predict(torch.tensor([[2.0, -1.0, 0.1]]), batch((0,)))
    torch.testing.assert_close(torch.from_numpy(prediction), torch.tensor([2.0, -1.0, 0.1]).sigmoid())
    assert TASK.answer(prediction) == [0, 2]
    assert TASK.cells(prediction, [1, 2]) == ("cat; rain; dog", "0.8808; 0.5250; 0.2689", "dog; rain")
    assert TASK.num_outputs == len(TASK.class_names) == 3


def test_a_classification_refuses_several_classes() -> None:
    with pytest.raises(ValueError, match="separator: a sample has one class in a classification; set it to null"):
        Classification(["cat", "dog"]).loss(torch.zeros(2, 2), batch((0, 1), (1,)))
