import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from d2v.eval.knn import knn_accuracy


def blobs(num_samples: int, num_features: int = 6, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes, so that the probes are right sometimes only."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    y = torch.randint(num_classes, (num_samples,), generator=generator)
    return centres[y] + torch.randn(num_samples, num_features, generator=generator), y


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (120, 0.2)])
def test_matches_scikit_learn(k: int, temperature: float) -> None:
    (train_x, train_y), (val_x, val_y) = blobs(120, seed=1), blobs(80, seed=2)
    accuracy = knn_accuracy(train_x, train_y, val_x, val_y, k, temperature)

    train, val = train_x.double().numpy(), val_x.double().numpy()
    scaler = StandardScaler().fit(train)
    train, val = scaler.transform(train), scaler.transform(val)
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = oracle.fit(train, train_y.numpy()).score(val, val_y.numpy())
    assert accuracy == pytest.approx(expected)
    assert 0.3 < accuracy < 1


@settings(deadline=None, max_examples=25)
@given(batch_size=st.integers(1, 100), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_ignores_batch_size_and_the_scale_and_mean_of_features(batch_size: int, scale: float, shift: float) -> None:
    (train_x, train_y), (val_x, val_y) = blobs(60, seed=1), blobs(40, seed=2)
    expected = knn_accuracy(train_x, train_y, val_x, val_y, 5)
    actual = knn_accuracy(train_x * scale + shift, train_y, val_x * scale + shift, val_y, 5, batch_size=batch_size)
    assert actual == pytest.approx(expected, abs=1 / 40)  # one vote may turn on a rounding error


def test_labels_may_be_any_integers_and_classes_may_be_missing() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(60, seed=1), blobs(40, seed=2)
    relabel = torch.tensor([-7, 1000, 3, 5])
    expected = knn_accuracy(train_x, train_y, val_x, val_y, 5)
    assert knn_accuracy(train_x, relabel[train_y], val_x, relabel[val_y], 5) == expected
    known = train_y != 2
    accuracy = knn_accuracy(train_x[known], train_y[known], val_x, val_y, 5)
    assert 0 < accuracy <= 1 - (val_y == 2).float().mean().item()


def test_collapsed_features_are_at_chance_and_zero_rows_do_no_harm() -> None:
    y = torch.arange(40) % 4
    for x in (torch.full((40, 3), 0.1), torch.zeros(40, 3)):
        assert knn_accuracy(x, y, x, y, 40) == pytest.approx(0.25)


def test_small_temperatures_do_not_overflow() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(60, seed=1), blobs(40, seed=2)
    nearest = knn_accuracy(train_x, train_y, val_x, val_y, 1)
    assert knn_accuracy(train_x, train_y, val_x, val_y, 20, temperature=1e-6) == nearest


def test_is_not_computed_in_half_precision_under_autocast() -> None:
    (train_x, train_y), (val_x, val_y) = blobs(300, 32, seed=1), blobs(200, 32, seed=2)
    expected = knn_accuracy(train_x, train_y, val_x, val_y)
    with torch.autocast("cpu", torch.bfloat16):
        assert knn_accuracy(train_x, train_y, val_x, val_y) == expected


def test_errors_name_the_setting() -> None:
    x, y = blobs(10)
    with pytest.raises(ValueError, match=r"k=11 .* 10 training samples"):
        knn_accuracy(x, y, x, y, k=11)
    with pytest.raises(ValueError, match=r"k=0"):
        knn_accuracy(x, y, x, y, k=0)
    with pytest.raises(ValueError, match=r"temperature=0"):
        knn_accuracy(x, y, x, y, k=2, temperature=0)
    with pytest.raises(ValueError, match="1 of 10 validation samples have NaN or infinite features"):
        knn_accuracy(x, y, x.index_fill(0, torch.tensor([3]), torch.nan), y, k=2)
