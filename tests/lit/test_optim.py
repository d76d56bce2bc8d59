"""Optimizers: each trainable parameter once, nothing else, and which rule updates it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from d2v.lit.optim import CombinedOptimizer, adamw, muon
from d2v.lit.pretrain import PretrainModule
from d2v.models.data2vec2 import Data2Vec2
from d2v.models.heads import FinetunedModel, MeanPoolHead
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.text import TextFrontend


def _optimizer(
    model: Data2Vec2, build: Callable[..., torch.optim.Optimizer] = adamw, **options: object
) -> torch.optim.Optimizer:
    module = PretrainModule(model, lambda model: build(model, lr=1e-3, **options), lambda step: 1.0, lambda step: 0.9)
    return module.configure_optimizers()["optimizer"]


@pytest.mark.parametrize("build", [adamw, muon])
@pytest.mark.parametrize("exempt", [False, True])
def test_every_trainable_parameter_exactly_once(  # type: ignore[no-untyped-def]
    make_model, exempt: bool, build: Callable[..., torch.optim.Optimizer]
) -> None:
    model = make_model()
    model.decoders["image"].proj.bias.requires_grad_(False)  # frozen: not to be trained
    optimizer = _optimizer(model, build, exempt_norms_and_biases=exempt)
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
    optimizer = adamw(nn.Linear(2, 2), lr=0.1, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (0.1, (0.8, 0.9), 1e-5, 0.3)
    assert group["fused"]


def _finetuned() -> FinetunedModel:
    frontends = {"image": ImageFrontend(16, 12, 3), "text": TextFrontend(16, 30)}
    encoder = transformer_encoder(frontends, 16, depth=3, num_heads=4, prenet_depth=2, final_norm=True)
    return FinetunedModel(encoder, MeanPoolHead(16, 2))


@pytest.mark.parametrize("build", [adamw, muon])
def test_layer_decay_lowers_learning_rates_towards_the_input(build: Callable[..., torch.optim.Optimizer]) -> None:
    model = _finetuned()
    optimizer = build(model, lr=1.0, weight_decay=0.1, exempt_norms_and_biases=True, layer_decay=0.5)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    first = 1.0 if build is adamw else 0.5  # what is logged; Muon's first group is the last block
    assert optimizer.param_groups[0]["lr"] == first
    expected = {
        "head.": 1.0,
        "encoder.trunk.norm.": 1.0,
        "encoder.trunk.blocks.2.": 1 / 2,
        "encoder.trunk.blocks.1.": 1 / 4,
        "encoder.trunk.blocks.0.": 1 / 8,
        "encoder.prenets.image.blocks.1.": 1 / 16,
        "encoder.prenets.text.blocks.1.": 1 / 16,
        "encoder.prenets.image.blocks.0.": 1 / 32,
        "encoder.prenets.text.blocks.0.": 1 / 32,
        "encoder.frontends.": 1 / 64,
        "encoder.input_norms.": 1 / 64,
    }
    for name, parameter in model.named_parameters():
        (wanted,) = [value for part, value in expected.items() if name.startswith(part)]
        assert lr[id(parameter)] == wanted, name
        exempt = parameter.ndim < 2 or name.endswith("prefix_tokens")
        assert decay[id(parameter)] == (0.0 if exempt else 0.1), name
    assert all(any(name.startswith(part) for name, _ in model.named_parameters()) for part in expected)


@pytest.mark.parametrize("build", [adamw, muon])
def test_a_head_can_have_a_learning_rate_of_its_own(build: Callable[..., torch.optim.Optimizer]) -> None:
    model = _finetuned()
    optimizer = build(model, lr=0.5, head_lr_factor=10.0)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert lr[id(parameter)] == (5.0 if name.startswith("head.") else 0.5), name


def test_muon_updates_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = _finetuned()
    optimizer = muon(model, lr=0.1, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3, momentum=0.9, newton_schulz_steps=3)
    assert isinstance(optimizer, CombinedOptimizer)
    first, second = optimizer.optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in first.param_groups for p in group["params"]}
    blocks = ("encoder.trunk.blocks.", "encoder.prenets.")
    assert by_muon == {name for name, p in model.named_parameters() if name.startswith(blocks) and p.ndim == 2}
    (matrices,), (rest,) = first.param_groups, second.param_groups
    assert (matrices["lr"], matrices["weight_decay"], matrices["momentum"], matrices["ns_steps"]) == (0.1, 0.3, 0.9, 3)
    assert (rest["lr"], tuple(rest["betas"]), rest["eps"], rest["weight_decay"]) == (0.1, (0.8, 0.9), 1e-5, 0.3)


def _step(model: FinetunedModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def test_a_matrix_moves_by_an_orthogonal_update_as_large_as_adamws() -> None:
    model = _finetuned()
    weight = model.encoder.trunk.get_submodule("blocks.0.attn.qkv").weight
    before = weight.detach().clone()
    _step(model, muon(model, lr=0.1, weight_decay=0.0), seed=0)
    update = (weight.detach() - before) / -0.1
    singular = torch.linalg.svdvals(update)
    assert singular.max() / singular.min() < 2.5  # five iterations bring them to about 1, between .7 and 1.2
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)  # AdamW's, by arXiv:2502.16982


def test_muons_learning_rates_and_state_are_those_of_one_optimizer() -> None:
    """A schedule reaches both parts, and a loaded state continues to the bit."""
    torch.manual_seed(0)
    model = _finetuned()
    optimizer = muon(model, lr=0.1)
    _step(model, optimizer, seed=0)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _step(model, optimizer, seed=1)
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())

    other = _finetuned()
    other.load_state_dict(weights)
    resumed = muon(other, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(state))
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    for seed in (2, 3):
        _step(model, optimizer, seed)
        _step(other, resumed, seed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_muon_trains_by_a_closure() -> None:
    model = _finetuned()
    optimizer = muon(model, lr=0.1)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert calls == [True]
