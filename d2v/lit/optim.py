"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    exempt_norms_and_biases: bool = False,
) -> torch.optim.AdamW:
    """AdamW, fused.

    Args:
        named_parameters: what to train.
        lr: peak learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        exempt_norms_and_biases: leave vectors (norms, biases) and prefix tokens undecayed. The released runs decay
            everything: the exemption in their code never took effect.

    Raises:
        ValueError: ``betas`` are not two.
    """
    if len(betas) != 2:
        raise ValueError(f"optim.betas={list(betas)}: give two numbers")
    parameters = list(named_parameters)
    groups = [{"params": [p for _, p in parameters], "weight_decay": weight_decay}]
    if exempt_norms_and_biases:
        exempt = {name for name, p in parameters if p.ndim < 2 or name.endswith("prefix_tokens")}
        groups = [
            {"params": [p for name, p in parameters if name not in exempt], "weight_decay": weight_decay},
            {"params": [p for name, p in parameters if name in exempt], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)
