"""Optimizer and parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from d2v.nn.encoder import Encoder
from d2v.values import Beta, Epsilon, NonNegativeFloat, PositiveFraction, buildable


@buildable
def adamw(
    model: nn.Module,
    lr: NonNegativeFloat,
    betas: tuple[Beta, Beta] = (0.9, 0.95),
    eps: Epsilon = 1e-8,
    weight_decay: NonNegativeFloat = 0.05,
    exempt_norms_and_biases: bool = False,
    layer_decay: PositiveFraction = 1.0,
) -> torch.optim.AdamW:
    """Build a fused AdamW.

    Args:
        model: model to train; parameters that require no gradient are left out.
        lr: peak learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        exempt_norms_and_biases: no weight decay for vectors (norms, biases) and prefix tokens. The released runs decay
            everything, because the exemption in their code has no effect.
        layer_decay: for fine-tuning: the learning rate of a layer of the model's encoder over that of the next one, a
            modality's own layers first; what comes before them is one below the first (BEiT, arXiv:2106.08254, and
            timm).
    """
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in parameters], "weight_decay": weight_decay}]
    if exempt_norms_and_biases:
        exempt = {name for name, p in parameters if p.ndim < 2 or name.endswith("prefix_tokens")}
        groups = [
            {"params": [p for name, p in parameters if name not in exempt], "weight_decay": weight_decay},
            {"params": [p for name, p in parameters if name in exempt], "weight_decay": 0.0},
        ]
    if layer_decay < 1:
        groups = _by_layer(model, parameters, groups, lr, layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


def _by_layer(
    model: nn.Module,
    parameters: list[tuple[str, nn.Parameter]],
    groups: list[dict[str, Any]],
    lr: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """The groups cut by layer, each with its learning rate; the last layer's group comes first."""
    encoders = {name: part for name, part in model.named_children() if isinstance(part, Encoder)}
    last = 1 + max((encoder.depth for encoder in encoders.values()), default=0)

    def layer(name: str) -> int:
        part, _, rest = name.partition(".")
        return encoders[part].layer_of(rest) if part in encoders else last

    layers = {p: layer(name) for name, p in parameters}
    cut = []
    for i in range(last, -1, -1):
        for group in groups:
            chosen = [p for p in group["params"] if layers[p] == i]
            if chosen:
                cut.append({**group, "params": chosen, "lr": lr * layer_decay ** (last - i)})
    return cut
