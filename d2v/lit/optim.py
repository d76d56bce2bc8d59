"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from d2v.nn.encoder import Encoder
from d2v.values import Beta, Epsilon, NonNegativeFloat, PositiveFloat, PositiveFraction, PositiveInt, buildable


@buildable
def adamw(
    model: nn.Module,
    lr: NonNegativeFloat,
    betas: tuple[Beta, Beta] = (0.9, 0.95),
    eps: Epsilon = 1e-8,
    weight_decay: NonNegativeFloat = 0.05,
    exempt_norms_and_biases: bool = False,
    layer_decay: PositiveFraction = 1.0,
    head_lr_factor: PositiveFloat = 1.0,
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
        head_lr_factor: for fine-tuning: the learning rate of what is outside of the encoder over ``lr``. A new head on
            a pretrained encoder can learn faster than the encoder should.
    """
    groups = _groups(model, lr, weight_decay, exempt_norms_and_biases, layer_decay, head_lr_factor)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


@buildable
def muon(
    model: nn.Module,
    lr: NonNegativeFloat,
    betas: tuple[Beta, Beta] = (0.9, 0.95),
    eps: Epsilon = 1e-8,
    weight_decay: NonNegativeFloat = 0.05,
    exempt_norms_and_biases: bool = False,
    layer_decay: PositiveFraction = 1.0,
    head_lr_factor: PositiveFloat = 1.0,
    momentum: Beta = 0.95,
    newton_schulz_steps: PositiveInt = 5,
) -> Optimizer:
    """Build a Muon for the weight matrices of the encoder's blocks, and an AdamW for everything else.

    Muon (https://kellerjordan.github.io/posts/muon) makes an update of a matrix nearly orthogonal. It is scaled to the
    root mean square of AdamW's updates (arXiv:2502.16982, eq. 4), so ``lr`` and ``weight_decay`` keep their meaning.
    The iterations cost as much on a small batch as on a large one.

    Args:
        model: as in :func:`adamw`, like the arguments up to ``head_lr_factor``; ``betas`` and ``eps`` are AdamW's.
        momentum: decay rate of Muon's average of gradients.
        newton_schulz_steps: iterations of each orthogonalisation.
    """
    blocks = [part for encoder in _encoders(model).values() for part in (encoder.trunk, encoder.prenets)]
    matrices = {p for part in blocks for p in part.parameters() if p.ndim == 2}
    groups = _groups(model, lr, weight_decay, exempt_norms_and_biases, layer_decay, head_lr_factor)
    hidden = [{**group, "params": [p for p in group["params"] if p in matrices]} for group in groups]
    rest = [{**group, "params": [p for p in group["params"] if p not in matrices]} for group in groups]
    return CombinedOptimizer(
        [
            torch.optim.Muon(
                [group for group in hidden if group["params"]],
                lr=lr,
                momentum=momentum,
                ns_steps=newton_schulz_steps,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [group for group in rest if group["params"]], lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True
            ),
        ]
    )


class CombinedOptimizer(Optimizer):
    """Several optimizers, each of parameters of its own, as one: a step, a list of groups, a state.

    Args:
        optimizers: in the order in which their groups stand in ``param_groups``.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers: Sequence[Optimizer] = ()
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # loading replaces the state and the groups

    def _share(self) -> None:
        """Let the optimizers work on this one's state and groups."""
        start = 0
        for optimizer in self.optimizers:
            end = start + len(optimizer.param_groups)
            optimizer.state, optimizer.param_groups = self.state, self.param_groups[start:end]
            start = end

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters once.

        Args:
            closure: computes the loss and the gradients, with gradients enabled; called once.

        Returns:
            What ``closure`` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss


def _groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    exempt_norms_and_biases: bool,
    layer_decay: float,
    head_lr_factor: float,
) -> list[dict[str, Any]]:
    """Return groups of the trainable parameters, each parameter once."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in parameters], "weight_decay": weight_decay}]
    if exempt_norms_and_biases:
        exempt = {name for name, p in parameters if p.ndim < 2 or name.endswith("prefix_tokens")}
        groups = [
            {"params": [p for name, p in parameters if name not in exempt], "weight_decay": weight_decay},
            {"params": [p for name, p in parameters if name in exempt], "weight_decay": 0.0},
        ]
    if layer_decay == head_lr_factor == 1:
        return groups
    return _by_layer(model, parameters, groups, lr, layer_decay, head_lr_factor)


def _encoders(model: nn.Module) -> dict[str, Encoder]:
    """Return the encoders among a model's modules, by name."""
    return {name: part for name, part in model.named_children() if isinstance(part, Encoder)}


def _by_layer(
    model: nn.Module,
    parameters: list[tuple[str, nn.Parameter]],
    groups: list[dict[str, Any]],
    lr: float,
    layer_decay: float,
    head_lr_factor: float,
) -> list[dict[str, Any]]:
    """The groups cut by layer, each with its learning rate; the head's groups come first, then the last layer's."""
    encoders = _encoders(model)
    last = 1 + max((encoder.depth for encoder in encoders.values()), default=0)

    def layer(name: str) -> int:
        part, _, rest = name.partition(".")
        return encoders[part].layer_of(rest) if part in encoders else last + 1

    layers = {p: layer(name) for name, p in parameters}
    cut = []
    for i in range(last + 1, -1, -1):
        factor = layer_decay ** (last - i) if i <= last else head_lr_factor
        for group in groups:
            chosen = [p for p in group["params"] if layers[p] == i]
            if chosen:
                cut.append({**group, "params": chosen, "lr": lr * factor})
    return cut
