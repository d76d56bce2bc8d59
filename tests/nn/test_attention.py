"""Attention in its parts against PyTorch's fused function, and where which of the two is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.nn import attention as module
from d2v.nn.attention import Attention, attention


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 2, 7, 8, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("bias_shape", [None, (3, 2, 7, 7), (1, 2, 7, 7), (3, 1, 1, 7)])
def test_parts_give_what_the_fused_function_gives(bias_shape: tuple[int, ...] | None) -> None:
    q, k, v = qkv(torch.float32)
    bias = None if bias_shape is None else torch.randn(bias_shape).requires_grad_()
    inputs = [q, k, v, *([] if bias is None else [bias])]
    weight = torch.randn(3, 2, 7, 8)
    fused = F.scaled_dot_product_attention(q, k, v, bias)
    parts = attention(q, k, v, bias)
    torch.testing.assert_close(parts, fused, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad((fused * weight).sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad((parts * weight).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_gets_no_weight() -> None:
    q, k, v = qkv()
    bias = torch.zeros(3, 1, 1, 7, dtype=torch.float64)
    bias[:, :, :, 5:] = float("-inf")
    alone = attention(q, k[:, :, :5], v[:, :, :5])
    torch.testing.assert_close(attention(q, k, v, bias), alone)


def test_dropout_is_of_weights() -> None:
    q, k, _ = qkv()
    ones = torch.ones(3, 2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(q, k, ones), ones, rtol=0, atol=1e-6)  # weights are rounded to float32
    sums = attention(q, k, ones, drop_rate=0.5)[..., 0]
    assert sums.std() > 0.1
    assert 0.8 < sums.mean() < 1.2


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_parts_are_for_bfloat16_on_cpus(dtype: torch.dtype, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", lambda *a: (calls.append(a), real(*a))[1])
    layer = Attention(16, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = layer(torch.randn(2, 5, 16))
    assert bool(calls) == fused
    assert out.dtype == dtype


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    layer, x = Attention(64, 4).eval(), torch.randn(2, 30, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x)
    exact = layer(x)
    error = (rounded.float() - exact).abs().max() / exact.abs().max()
    assert float(error.detach()) < 0.02


def test_no_dropout_in_eval_mode() -> None:
    torch.manual_seed(0)
    layer, x = Attention(16, 2, attn_drop_rate=0.5, drop_rate=0.5), torch.randn(2, 5, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads=3 does not divide the width 16"):
        Attention(16, 3)
