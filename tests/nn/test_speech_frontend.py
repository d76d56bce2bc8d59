"""Frames, relative positions and ALiBi, against loops that do one thing at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.speech import CONV_LAYERS, SpeechFrontend
from d2v.nn.positions import ConvPositions, alibi_slopes
from d2v.objective.masking import SpanMask
from d2v.types import Batch, TokenMask, num_frames

CONVS = [[8, 10, 5], [12, 3, 2]]


def frontend(**options: object) -> SpeechFrontend:
    made = SpeechFrontend(
        16, 6, **({"conv_layers": CONVS, "pos_depth": 2, "pos_kernel_size": 5, "pos_groups": 4} | options)
    )
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def masks(num_tokens: int, samples: int = 2, num_masks: int = 3) -> TokenMask:
    rngs = [np.random.default_rng(i) for i in range(samples)]
    return TokenMask.from_bool(torch.from_numpy(SpanMask(num_masks, 0.5, 3, 0.1)((num_tokens,), rngs)), num_masks)


def test_a_frame_is_20_ms_from_25_ms() -> None:
    assert num_frames(400, CONV_LAYERS) == 1
    assert num_frames(399, CONV_LAYERS) == 0
    assert [num_frames(n, CONV_LAYERS) for n in (16_000, 32_000, 320_000)] == [49, 99, 999]


@pytest.mark.parametrize("samples", [20, 25, 99, 400])
def test_frames_are_as_many_as_the_convolutions_make(samples: int) -> None:
    made = frontend()
    x = made.embed(torch.randn(2, samples))
    assert x.shape == (2, *made.token_grid(torch.empty(2, samples)), 16)


def test_too_short_a_waveform_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"19 samples hold no frame: raise min_seconds"):
        frontend().embed(torch.randn(1, 19))


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_the_paper(heads: int) -> None:
    def power_of_two(n: int) -> list[float]:
        start = 2.0 ** (-(2.0 ** -(math.log2(n) - 3)))
        return [start ** (i + 1) for i in range(n)]

    below = 2 ** int(math.log2(heads))
    expected = power_of_two(below)
    if heads > below:
        expected += power_of_two(2 * below)[0::2][: heads - below]
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(expected))


@torch.no_grad()
def test_the_bias_keeps_the_distances_of_the_unmasked_clip() -> None:
    made, mask = frontend(num_prefix_tokens=1), masks(20)
    made.alibi_scale.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0, 0.0, 3.0]))
    bias = made.attn_bias(20, mask)
    slopes = alibi_slopes(6)
    for n, kept in enumerate(mask.ids_keep.tolist()):
        for head in range(6):
            for a, i in enumerate(kept):
                for b, j in enumerate(kept):
                    expected = -abs(i - j) * slopes[head] * max(0.0, made.alibi_scale[head].item())
                    assert bias[n, head, a + 1, b + 1].item() == pytest.approx(expected.item(), abs=1e-6)
        assert (bias[n, :, 0] == 0).all()
        assert (bias[n, :, :, 0] == 0).all()
    whole = made.attn_bias(20, None)
    assert whole.shape == (1, 6, 21, 21)
    torch.testing.assert_close(whole[0, 1, 3, 8], -5 * slopes[1] * 2)


@torch.no_grad()
def test_positions_see_zeros_where_frames_are_masked() -> None:
    made, mask = frontend(), masks(20)
    x = torch.randn(2, 20, 16)
    tokens = made.tokens(x, mask)
    for n in range(6):
        zeroed = x[n // 3].clone()
        zeroed[mask.mask[n]] = 0
        expected = x[n // 3] + made.positions(zeroed[None])[0]
        torch.testing.assert_close(tokens[n], expected[~mask.mask[n]], rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[0, mask.mask[0]] = 1e3  # masked frames of the first view do not matter to it
    assert torch.equal(made.tokens(changed, mask)[0], tokens[0])


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [3, 4, 19])
def test_convolutional_positions_by_hand(kernel_size: int) -> None:
    made, x = ConvPositions(8, 1, kernel_size, 2), torch.randn(2, 11, 8)
    padded = F.pad(x.transpose(1, 2), (kernel_size // 2, kernel_size // 2))
    y = F.conv1d(padded, made.convs[0].weight, made.convs[0].bias, groups=2)[..., :11].transpose(1, 2)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(made(x), F.gelu(y), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prenet_depth", [0, 1])
def test_appended_padding_changes_no_real_frame(prenet_depth: int) -> None:
    encoder = transformer_encoder({"speech": SpeechFrontend(16, 4, CONVS, 2, 5, 4)}, 16, 2, 4, prenet_depth).eval()
    waves = [torch.randn(n) for n in (203, 160)]
    inputs = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    frames = [num_frames(len(wave), CONVS) for wave in waves]
    padding = torch.arange(frames[0]) >= torch.tensor(frames)[:, None]
    together = encoder(Batch("speech", inputs, torch.arange(2), padding_mask=padding), return_layers=True)
    for i, wave in enumerate(waves):
        alone = encoder(Batch("speech", wave[None], torch.arange(1)), return_layers=True)
        torch.testing.assert_close(together.x[i, : frames[i]], alone.x[0], rtol=1e-4, atol=1e-5)
        for a, b in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(a[i, : frames[i]], b[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_zeroing_padding_leaks_as_in_the_reference() -> None:
    made, leaking = frontend(), frontend(zero_padding="never")
    leaking.load_state_dict(made.state_dict())
    x, padding = torch.randn(1, 12, 16), torch.arange(12)[None] >= 9
    alone = made.tokens(x[:, :9], None)
    torch.testing.assert_close(made.tokens(x, None, padding)[:, :9], alone, rtol=1e-4, atol=1e-5)
    assert (leaking.tokens(x, None, padding)[:, :9] - alone).abs().max() > 1e-2


def zero_padding(value: str, **options: object) -> SpeechFrontend:
    torch.manual_seed(4)
    return frontend(zero_padding=value, **options)


@torch.no_grad()
def test_padding_may_be_zeroed_before_the_first_convolution_alone() -> None:
    made, x, padding = zero_padding("first"), torch.randn(2, 12, 16), torch.arange(12) >= torch.tensor([[9], [12]])
    zeroed = x.clone()
    zeroed[0, 9:] = 0
    torch.testing.assert_close(made.tokens(x, None, padding), zeroed + made.positions(zeroed), rtol=1e-5, atol=1e-5)
    changed = x.clone()
    changed[0, 9:] = 1e3  # what lies in padding does not matter
    assert torch.equal(made.tokens(changed, None, padding), made.tokens(x, None, padding))
    assert (changed[0, 9:] == 1e3).all()  # nor is it written to
    assert torch.equal(made.tokens(x, None), x + made.positions(x))


@torch.no_grad()
def test_padding_that_is_zeroed_first_leaks_from_the_second_convolution_on() -> None:
    x, padding = torch.randn(1, 12, 16), torch.arange(12)[None] >= 9
    for depth in (1, 2):
        first, every = (zero_padding(value, pos_depth=depth) for value in ("first", "every"))
        a, b = (made.tokens(x, None, padding)[:, :9] for made in (first, every))
        alone = every.tokens(x[:, :9], None)
        torch.testing.assert_close(b, alone, rtol=1e-4, atol=1e-5)
        assert torch.allclose(a, alone, rtol=1e-4, atol=1e-5) == (depth == 1)


@torch.no_grad()
def test_padding_is_zeroed_under_a_mask_too() -> None:
    made, x, mask = zero_padding("first"), torch.randn(2, 20, 16), masks(20)
    padding = torch.arange(20) >= torch.tensor([[15], [20]])
    tokens = made.tokens(x, mask, padding)
    for n in range(6):
        real = x[n // 3].masked_fill(padding[n // 3][:, None], 0)
        positions = made.positions(real.masked_fill(mask.mask[n][:, None], 0)[None])[0]
        torch.testing.assert_close(tokens[n], (real + positions)[~mask.mask[n]], rtol=1e-4, atol=1e-5)


def test_the_mask_token_is_there_if_asked_for() -> None:
    assert frontend().mask_token is None
    assert not frontend().can_hide
    made = frontend(mask_token=True)
    assert made.can_hide
    assert made.mask_token.shape == (16,)


def test_groups_divide_the_features() -> None:
    with pytest.raises(ValueError, match=r"pos_groups=5 does not divide embed_dim=16"):
        frontend(pos_groups=5)
