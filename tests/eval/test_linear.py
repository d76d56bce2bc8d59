import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from d2v.eval import linear
from d2v.eval.linear import LinearProbe, linear_probe


def blobs(num_samples: int, seed: int, num_features: int = 6, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    y = torch.randint(num_classes, (num_samples,), generator=generator)
    return centres[y] + torch.randn(num_samples, num_features, generator=generator), y


def test_matches_scikit_learn_at_the_chosen_c() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(300, 1), blobs(200, 2)
    probe = linear_probe(5 + 100 * train_x, train_y, 5 + 100 * val_x, val_y)
    scaler = StandardScaler().fit(train_x.double().numpy())
    oracle = LogisticRegression(C=probe.c, max_iter=1000)
    oracle.fit(scaler.transform(train_x.double().numpy()), train_y.numpy())
    expected = oracle.score(scaler.transform(val_x.double().numpy()), val_y.numpy())
    assert probe.accuracy == pytest.approx(expected, abs=1 / 200)
    assert probe.converged
    assert probe.accuracy > 0.6


def test_chooses_c_without_the_validation_set() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(200, 1, num_features=150), blobs(100, 2, num_features=150)
    probe = linear_probe(train_x, train_y, val_x, val_y)
    shuffled = linear_probe(train_x, train_y, val_x, val_y.roll(1))
    assert probe.inner_accuracies == shuffled.inner_accuracies
    assert probe.inner_accuracies[probe.c] == max(probe.inner_accuracies.values())
    ties = [c for c, accuracy in probe.inner_accuracies.items() if accuracy == probe.inner_accuracies[probe.c]]
    assert probe.c == min(ties)


def test_c_is_chosen_without_a_look_at_the_held_out_part() -> None:
    """The held-out samples are much larger than the others: a scale that saw them would change every accuracy."""
    (train_x, train_y), (val_x, val_y) = blobs(300, 1), blobs(50, 2)
    held_out = linear.split_stratified(train_y.numpy(), seed=5)
    train_x[held_out] = 3 + 20 * train_x[held_out]
    probe = linear_probe(train_x, train_y, val_x, val_y, (1e-3, 1e-2), seed=5)
    fit_x, fit_y = train_x[~held_out].double().numpy(), train_y[~held_out].numpy()
    scaler = StandardScaler().fit(fit_x)
    expected = {}
    for c in (1e-3, 1e-2):
        oracle = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(fit_x), fit_y)
        expected[c] = oracle.score(scaler.transform(train_x[held_out].double().numpy()), train_y[held_out].numpy())
    assert probe.inner_accuracies == pytest.approx(expected, abs=1e-9)


def test_repeats_for_a_seed_and_does_not_depend_on_the_order_of_the_grid() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(200, 1), blobs(100, 2)
    assert linear_probe(train_x, train_y, val_x, val_y, (1, 0.01)) == linear_probe(
        train_x, train_y, val_x, val_y, (0.01, 1, 1)
    )
    splits = {linear.split_stratified(train_y.numpy(), seed).tobytes() for seed in (0, 0, 1)}
    assert len(splits) == 2


def test_split_holds_out_a_fifth_of_every_class_but_never_all_of_it() -> None:
    labels = np.array([0] * 100 + [1] * 11 + [2] * 2 + [3])
    held_out = linear.split_stratified(labels, seed=0)
    assert [int(held_out[labels == label].sum()) for label in range(4)] == [20, 3, 1, 0]


def test_reports_that_the_solver_stopped_early_without_warning() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(200, 1), blobs(100, 2)
    probe = linear_probe(train_x, train_y, val_x, val_y, (1e3,), max_iter=2)
    assert not probe.converged
    assert probe.inner_accuracies == {}


def test_other_warnings_are_not_swallowed() -> None:
    class Noisy(LogisticRegression):
        def fit(self, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
            warnings.warn("unusual", RuntimeWarning, stacklevel=1)
            return self

    with pytest.warns(RuntimeWarning, match="unusual"):
        assert linear.fit_quietly(Noisy(), np.zeros((2, 1)), np.arange(2))


def test_constant_features_missing_and_rare_classes() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(100, 1), blobs(60, 2)
    expected = linear_probe(train_x, train_y, val_x, val_y).accuracy
    padded = [torch.cat([x, torch.full((len(x), 2), 0.1)], dim=1) for x in (train_x, val_x)]
    assert linear_probe(padded[0], train_y, padded[1], val_y).accuracy == pytest.approx(expected, abs=1 / 60)

    missing = train_y != 2
    probe = linear_probe(train_x[missing], train_y[missing], val_x, val_y)
    assert 0.3 < probe.accuracy <= 1 - (val_y == 2).float().mean().item()

    rare = missing | (torch.arange(100) == train_y.tolist().index(2))
    assert linear_probe(train_x[rare], train_y[rare], val_x, val_y).accuracy > 0.3


def test_collapsed_features_are_at_chance() -> None:
    x, y = torch.full((80, 3), 0.1), torch.arange(80) % 4
    assert linear_probe(x, y, x, y).accuracy == pytest.approx(0.25)


def test_errors_say_what_to_do() -> None:
    x, y = blobs(20, 1)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="2 of 20 training samples have NaN or infinite features"):
            linear_probe(x.index_fill(0, torch.tensor([3, 4]), bad), y, x, y)
    with pytest.raises(ValueError, match=r"c_grid=\[\]"):
        linear_probe(x, y, x, y, ())
    with pytest.raises(ValueError, match=r"c_grid=\[0, 1\]"):
        linear_probe(x, y, x, y, (0, 1))
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(x, torch.zeros(20, dtype=torch.int64), x, y)
    with pytest.raises(ValueError, match=r"set c_grid to a single value"):
        linear_probe(x[:4], torch.arange(4), x, y)
    assert linear_probe(x[:4], torch.arange(4), x, y, (1.0,)).c == 1.0
    with pytest.raises(ValueError, match="the validation set is empty"):
        linear_probe(x, y, x[:0], y[:0])
    with pytest.raises(ValueError, match="6 training features, but 5 validation features"):
        linear_probe(x, y, x[:, :5], y)
    with pytest.raises(ValueError, match=r"labels of shape \(19,\)"):
        linear_probe(x, y[:19], x, y)


def test_the_edge_of_the_grid_is_told_where_it_was_chosen() -> None:
    def edge(c: float, *tried: float) -> str | None:
        return LinearProbe(0.5, c, True, dict.fromkeys(tried, 0.5)).edge

    assert (edge(1, 1, 2, 3), edge(2, 1, 2, 3), edge(3, 1, 2, 3), edge(1)) == ("smallest", None, "largest", None)
