"""Multinomial logistic regression with an L2 penalty, by Newton's method with conjugate gradients.

Truncated Newton (Nocedal and Wright, Numerical Optimization, 2nd ed., sec. 7.1): each step solves the Newton equations
to a relative residual of .3 by conjugate gradients, and a line search halves it until the loss falls enough. The
preconditioner is the Hessian of a single class with the mean weight p (1 - p) of all classes, so that correlated
features cost no iterations. Products with the features are in float32, everything else is in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_TOLERANCE = 1e-4  # nats a sample
_RESIDUAL = 0.3  # of the Newton equations
_MAX_CG_STEPS = 200
_REFRESH = 3  # Newton steps with the same preconditioner, which costs as much as ten steps of conjugate gradients
_BLOCK = 2048  # features of a block of the preconditioner: a bound on its memory and time
_CHUNK = 2**22  # logits computed at once


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        weights: (K, D + 1) float64, a row for each class, the intercept last.
        converged: whether the last step was a whole Newton step that lowered the loss by at most 1e-4 nats a sample.
    """

    weights: Tensor
    converged: bool

    def predict(self, x: Tensor) -> Tensor:
        """Return the most likely class (N,) int64 of features (N, D) float."""
        weights = self.weights.float()
        return torch.cat([F.linear(rows, weights[:, :-1], weights[:, -1]).argmax(1) for rows in x.split(2**16)])


def fit_logistic(
    x: Tensor, y: Tensor, num_classes: int, c: float, start: Logistic | None = None, max_iter: int = 50
) -> Logistic:
    """Minimise ``c * (sum of cross-entropies) + |W|^2 / 2``; the intercepts are not penalised.

    The objective is scikit-learn's, for two classes as well: there it penalises the difference of both rows.

    Args:
        x: (N, D) float32 features, standardised.
        y: (N,) int64 classes, 0 to ``num_classes - 1``.
        num_classes: K, at least 2.
        c: inverse L2 strength.
        start: classifier to start from, such as that of a smaller C; None for zeros.
        max_iter: largest number of Newton steps.
    """
    problem = _Problem(x, y, num_classes, c)
    weights = x.new_zeros(num_classes, x.shape[1] + 1, dtype=torch.float64) if start is None else start.weights
    loss, shares = problem.loss(weights)
    for i in range(max_iter):
        if i % _REFRESH == 0:
            factors = problem.preconditioner(shares)
        gradient = problem.gradient(weights, shares)
        step, solved = _newton_step(problem, gradient, shares, factors)
        slope = float((gradient * step).sum())
        size = 1.0
        while True:
            new_loss, new_shares = problem.loss(weights + size * step)
            if new_loss <= loss + 1e-4 * size * slope:
                break
            size /= 2
            if size < 1e-6:  # float32 resolves no lower loss
                return Logistic(weights, solved and -slope / 2 <= _TOLERANCE)
        weights, loss, shares = weights + size * step, new_loss, new_shares
        if solved and size == 1 and -slope / 2 <= _TOLERANCE:
            return Logistic(weights, True)
    return Logistic(weights, False)


class _Problem:
    """Mean loss of a sample, its gradient and its Hessian, for weights (K, D + 1)."""

    def __init__(self, x: Tensor, y: Tensor, num_classes: int, c: float) -> None:
        rows = max(1, _CHUNK // num_classes)
        self.num_samples = len(x)
        self.x, self.y = F.pad(x.float(), (0, 1), value=1.0).split(rows), y.split(rows)
        strength = (2 if num_classes == 2 else 1) / (c * len(x))
        self.penalty = F.pad(x.new_full((x.shape[1],), strength, dtype=torch.float64), (0, 1))

    def loss(self, weights: Tensor) -> tuple[float, list[Tensor]]:
        """Return the loss, and the classes' probabilities, (K, n) float32 for each chunk of samples."""
        total, shares = 0.5 * float((self.penalty * weights * weights).sum()), []
        for x, y in zip(self.x, self.y, strict=True):
            logits = (weights.float() @ x.T).double()
            log_shares = logits - logits.logsumexp(0)
            total -= float(log_shares.gather(0, y[None]).sum()) / self.num_samples
            shares.append(log_shares.exp().float())
        return total, shares

    def gradient(self, weights: Tensor, shares: list[Tensor]) -> Tensor:
        """Return the gradient, (K, D + 1) float64."""
        total = self.penalty * weights
        for x, y, p in zip(self.x, self.y, shares, strict=True):
            error = p.scatter_add(0, y[None], p.new_full((1, len(y)), -1.0))
            total += (error @ x).double() / self.num_samples
        return total

    def curvature(self, direction: Tensor, shares: list[Tensor]) -> Tensor:
        """Return the product of the Hessian and a direction, (K, D + 1) float64."""
        total, direction_32 = self.penalty * direction, direction.float()
        for x, p in zip(self.x, shares, strict=True):
            change = direction_32 @ x.T
            total += ((p * (change - (p * change).sum(0))) @ x).double() / self.num_samples
        return total

    def preconditioner(self, shares: list[Tensor]) -> list[Tensor]:
        """Return Cholesky factors, float64, of the blocks of features on the diagonal."""
        factors = []
        for columns in self._blocks():
            penalty = self.penalty[columns]
            block = torch.diag(penalty)
            for x, p in zip(self.x, shares, strict=True):
                part = x[:, columns]
                block += (part.T @ (part * (p * (1 - p)).mean(0)[:, None])).double() / self.num_samples
            # Rounding in float32 can make the smallest eigenvalues negative.
            block.diagonal().add_(1e-6 * block.diagonal().mean() + torch.finfo(torch.float32).tiny)
            factors.append(torch.linalg.cholesky(block))
        return factors

    def solve(self, factors: list[Tensor], gradient: Tensor) -> Tensor:
        """Return the preconditioner's inverse times a gradient."""
        parts = zip(self._blocks(), factors, strict=True)
        return torch.cat([torch.cholesky_solve(gradient[:, columns].T, f).T for columns, f in parts], dim=1)

    def _blocks(self) -> Iterator[slice]:
        width = len(self.penalty)
        return (slice(start, min(start + _BLOCK, width)) for start in range(0, width, _BLOCK))


def _newton_step(
    problem: _Problem, gradient: Tensor, shares: list[Tensor], factors: list[Tensor]
) -> tuple[Tensor, bool]:
    """Return a step by preconditioned conjugate gradients, and whether it solves the Newton equations well enough."""
    step, residual = torch.zeros_like(gradient), -gradient
    direction = problem.solve(factors, residual)
    norm = first_norm = float((residual * direction).sum())
    for _ in range(_MAX_CG_STEPS):
        product = problem.curvature(direction, shares)
        bend = float((direction * product).sum())
        if bend <= 0:  # no gradient is left, or only rounding
            return step, first_norm <= _TOLERANCE
        step = step + (norm / bend) * direction
        residual = residual - (norm / bend) * product
        preconditioned = problem.solve(factors, residual)
        new_norm = float((residual * preconditioned).sum())
        if new_norm <= _RESIDUAL**2 * first_norm:
            return step, True
        direction, norm = preconditioned + (new_norm / norm) * direction, new_norm
    return step, False
