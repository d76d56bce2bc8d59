"""The Transformer block against explicit formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from d2v.nn.block import Block


def block(**options: object) -> Block:
    module = Block(12, 3, mlp_ratio=2.0, **options)  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.eval()


def norm(x: Tensor, layer: nn.LayerNorm, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * layer.weight + layer.bias


def mlp(x: Tensor, module: Block) -> Tensor:
    hidden = x @ module.mlp.fc1.weight.T + module.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ module.mlp.fc2.weight.T + module.mlp.fc2.bias


def attention(x: Tensor, module: Block, bias: Tensor | None = None) -> Tensor:
    qkv = x @ module.attn.qkv.weight.T + module.attn.qkv.bias
    heads = []
    for h in range(3):
        q, k, v = (qkv[..., part * 12 + h * 4 : part * 12 + h * 4 + 4] for part in range(3))
        logits = q @ k.transpose(1, 2) / 2
        if bias is not None:
            logits = logits + bias[:, h]
        heads.append(logits.softmax(-1) @ v)
    return torch.cat(heads, -1) @ module.attn.proj.weight.T + module.attn.proj.bias


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@torch.no_grad()
def test_post_norm(eps: float) -> None:
    module, x = block(norm_eps=eps), torch.randn(2, 5, 12)
    out, mlp_output = module(x)
    middle = norm(x + attention(x, module), module.norm1, eps)
    torch.testing.assert_close(mlp_output, mlp(middle, module), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, norm(middle + mlp(middle, module), module.norm2, eps), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pre_norm_keeps_both_residuals() -> None:
    module, x = block(norm_first=True), torch.randn(2, 5, 12)
    out, mlp_output = module(x)
    middle = x + attention(norm(x, module.norm1, 1e-6), module)
    expected = mlp(norm(middle, module.norm2, 1e-6), module)
    torch.testing.assert_close(mlp_output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, middle + expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_attn_bias_is_added_to_the_logits(norm_first: bool) -> None:
    module, x = block(norm_first=norm_first), torch.randn(2, 5, 12)
    assert torch.allclose(module(x, torch.zeros(1, 1, 5, 5))[0], module(x)[0], atol=1e-6)
    bias = torch.randn(2, 3, 5, 5)
    inner = norm(x, module.norm1, 1e-6) if norm_first else x
    attended = x + attention(inner, module, bias)
    if not norm_first:
        expected = mlp(norm(attended, module.norm1, 1e-6), module)
    else:
        expected = mlp(norm(attended, module.norm2, 1e-6), module)
    torch.testing.assert_close(module(x, bias)[1], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_bias_of_minus_infinity_hides_a_token() -> None:
    module, x = block(), torch.randn(1, 5, 12)
    bias = torch.zeros(1, 1, 5, 5)
    bias[..., 4] = -math.inf
    torch.testing.assert_close(module(x, bias)[0][:, :4], module(x[:, :4])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "flag", ["drop_rate", "attn_drop_rate", "mlp_drop_rate", "post_mlp_drop_rate", "drop_path_rate"]
)
@torch.no_grad()
def test_every_rate_acts_in_training_only(flag: str, norm_first: bool) -> None:
    module, x = block(norm_first=norm_first, **{flag: 0.5}), torch.randn(64, 5, 12)
    plain = block(norm_first=norm_first)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), plain(x))
    module.train()
    first, second = module(x), module(x)
    assert not torch.allclose(first[0], second[0])
    if flag == "drop_path_rate":  # whole samples: some keep both branches or lose one, and share it over their tokens
        changed = ~torch.isclose(first[0], second[0], atol=1e-5).all(-1)
        assert 0 < changed.all(1).sum() < 64


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_the_mlp_output_is_taken_before_dropout(norm_first: bool) -> None:
    module, x = block(post_mlp_drop_rate=0.9, norm_first=norm_first), torch.randn(4, 5, 12)
    expected = module(x)[1]
    torch.testing.assert_close(module.train()(x)[1], expected)


@torch.no_grad()
def test_samples_do_not_see_each_other_and_order_is_free() -> None:
    module, x = block(), torch.randn(3, 6, 12)
    torch.testing.assert_close(module(x)[0][1:2], module(x[1:2])[0], rtol=1e-4, atol=1e-5)
    order = torch.randperm(6)
    torch.testing.assert_close(module(x)[0][:, order], module(x[:, order])[0], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_through_both_outputs() -> None:
    module = block()
    out, _ = module(torch.randn(2, 5, 12))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_block_is_skipped_as_often_as_asked() -> None:
    block = Block(dim=8, num_heads=2, layer_drop_rate=0.2).train()
    x = torch.randn(1, 3, 8)
    skipped = sum(torch.equal(block(x)[0], x) for _ in range(400))
    assert 0.12 < skipped / 400 < 0.28
    assert not torch.equal(block.eval()(x)[0], x)
