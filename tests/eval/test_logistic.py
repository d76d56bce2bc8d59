"""Logistic regression by Newton's method against scikit-learn's, and against itself from other starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from d2v.eval import logistic
from d2v.eval.logistic import fit_logistic


def blobs(num_classes: int, num_features: int = 40, num_samples: int = 300) -> tuple[Tensor, Tensor]:
    """Samples of overlapping classes, with correlated features."""
    generator = torch.Generator().manual_seed(num_classes)
    y = torch.arange(num_samples) % num_classes
    x = torch.randn(num_classes, num_features, generator=generator)[y]
    x = x + 2 * torch.randn(num_samples, num_features, generator=generator)
    return (x @ torch.randn(num_features, num_features, generator=generator)) / num_features**0.5, y


def objective(weights: Tensor, x: Tensor, y: Tensor, c: float) -> float:
    """scikit-learn's, of a sample, by its formula."""
    logits = x.double() @ weights[:, :-1].T + weights[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, y)
    return float(loss + weights[:, :-1].square().sum() / (2 * c * len(x)))


@pytest.mark.parametrize("c", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_is_the_optimum_of_scikit_learn(num_classes: int, c: float) -> None:
    x, y = blobs(num_classes)
    fit = fit_logistic(x, y, num_classes, c)
    oracle = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x.double().numpy(), y.numpy())
    assert fit.converged
    expected = torch.from_numpy(oracle.predict_proba(x.double().numpy()))
    found = (x.double() @ fit.weights[:, :-1].T + fit.weights[:, -1]).softmax(1)
    assert float((found - expected).abs().max()) < 0.02
    assert float((fit.predict(x) == torch.from_numpy(oracle.predict(x.double().numpy()))).double().mean()) > 0.99
    if num_classes > 2:
        best = torch.from_numpy(np.concatenate([oracle.coef_, oracle.intercept_[:, None]], 1))
        assert objective(fit.weights, x, y, c) - objective(best, x, y, c) < 1e-4


def test_a_start_from_a_stronger_penalty_ends_where_a_cold_one_does() -> None:
    x, y = blobs(5)
    cold = fit_logistic(x, y, 5, 1.0)
    warm = fit_logistic(x, y, 5, 1.0, start=fit_logistic(x, y, 5, 0.01))
    assert cold.converged
    assert warm.converged
    assert abs(objective(warm.weights, x, y, 1.0) - objective(cold.weights, x, y, 1.0)) < 1e-4
    assert bool((warm.predict(x) == cold.predict(x)).double().mean() > 0.99)


def test_says_that_it_stopped_early() -> None:
    x, y = blobs(5)
    assert not fit_logistic(x, y, 5, 10.0, max_iter=2).converged
    assert fit_logistic(x, y, 5, 10.0).converged


@pytest.mark.parametrize(("name", "value"), [("_CHUNK", 64), ("_BLOCK", 16)])
def test_parts_of_samples_and_features_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    x, y = blobs(4)
    whole = fit_logistic(x, y, 4, 0.1)
    monkeypatch.setattr(logistic, name, value)
    parts = fit_logistic(x, y, 4, 0.1)
    assert parts.converged
    assert abs(objective(parts.weights, x, y, 0.1) - objective(whole.weights, x, y, 0.1)) < 1e-4


def test_correlated_features_cost_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the preconditioner the same fit takes hundreds of products with the Hessian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=generator) @ torch.diag(torch.logspace(0, -3, 30))
    x = x @ torch.linalg.qr(torch.randn(30, 30, generator=generator))[0]
    y = (x @ torch.randn(30, 3, generator=generator)).argmax(1)
    products = []
    curvature = logistic._Problem.curvature
    monkeypatch.setattr(
        logistic._Problem, "curvature", lambda self, *args: products.append(1) or curvature(self, *args)
    )
    assert fit_logistic(x, y, 3, 1e4).converged
    assert len(products) < 150


def test_nothing_to_learn() -> None:
    x, y = torch.zeros(12, 3), torch.arange(12) % 3
    fit = fit_logistic(x, y, 3, 1.0)
    assert fit.converged
    assert fit.weights.abs().max() == 0
