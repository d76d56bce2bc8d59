"""Parameter groups: each trainable parameter once, nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v.lit.optim import adamw
from d2v.lit.pretrain import PretrainModule
from d2v.models.data2vec2 import Data2Vec2


def _optimizer(model: Data2Vec2, **options: object) -> torch.optim.Optimizer:
    module = PretrainModule(model, lambda named: adamw(named, lr=1e-3, **options), lambda step: 1.0, lambda step: 0.9)  # type: ignore[arg-type]
    return module.configure_optimizers()["optimizer"]


@pytest.mark.parametrize("exempt", [False, True])
def test_every_trainable_parameter_exactly_once(make_model, exempt: bool) -> None:  # type: ignore[no-untyped-def]
    model = make_model()
    model.decoders["image"].proj.bias.requires_grad_(False)  # frozen: not to be trained
    optimizer = _optimizer(model, exempt_norms_and_biases=exempt)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    never = [*model.teacher.parameters(), *model.buffers(), model.decoders["image"].proj.bias]
    assert not set(ids) & {id(tensor) for tensor in never}
    assert all(p.requires_grad for p in [*model.student.parameters()])


def test_default_decays_everything_as_the_released_runs(make_model) -> None:  # type: ignore[no-untyped-def]
    (group,) = _optimizer(make_model(), weight_decay=0.05).param_groups
    assert group["weight_decay"] == 0.05


def test_exemption_covers_norms_biases_and_prefix_tokens(make_model) -> None:  # type: ignore[no-untyped-def]
    model = make_model()
    decayed, exempt = _optimizer(model, weight_decay=0.05, exempt_norms_and_biases=True).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    exempt_names = {names[id(p)] for p in exempt["params"]}
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and not path.startswith("teacher")
        for name, _ in module.named_parameters()
    }
    assert norms
    assert norms <= exempt_names
    assert "student.frontends.image.prefix_tokens" in exempt_names
    assert all(name in norms or name.endswith(("bias", "prefix_tokens")) for name in exempt_names), exempt_names
    assert all(name.endswith("weight") for name in (names[id(p)] for p in decayed["params"]))


def test_options_reach_adamw() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = adamw([("p", parameter)], lr=0.1, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (0.1, (0.8, 0.9), 1e-5, 0.3)
    assert group["fused"]


def _named(depth: int = 3) -> dict[str, nn.Parameter]:
    names = ["encoder.frontends.image.proj.weight", "encoder.input_norms.image.weight"]
    names += ["encoder.prenets.image.0.mlp.weight", "head.proj.weight"]
    names += [f"encoder.blocks.{i}.attn.qkv.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    return {name: nn.Parameter(torch.zeros(2, 2) if name.endswith("weight") else torch.zeros(2)) for name in names}


def test_layer_decay_lowers_learning_rates_towards_the_input() -> None:
    parameters = _named()
    optimizer = adamw(parameters.items(), lr=1.0, weight_decay=0.1, exempt_norms_and_biases=True, layer_decay=0.5)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.param_groups[0]["lr"] == 1.0  # what is logged
    expected = {
        "head.": 1.0,
        "blocks.2.": 0.5,
        "blocks.1.": 0.25,
        "blocks.0.": 0.125,
        "frontends.": 1 / 32,
        "input_norms.": 1 / 32,
        "prenets.": 1 / 16,
    }
    for name, parameter in parameters.items():
        (wanted,) = [value for part, value in expected.items() if part in name]
        assert lr[id(parameter)] == wanted, name
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.1), name
    with pytest.raises(ValueError, match=r"optim\.layer_decay=0"):
        adamw(parameters.items(), lr=1.0, layer_decay=0)
