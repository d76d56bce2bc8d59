"""The decoder: where tokens go, where noise goes, what is predicted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.nn.decoders import ConvDecoder2d
from d2v.types import TokenMask

GRID = (3, 4)


def random_mask(rows: int, num_masked: int = 7, num_masks: int = 1) -> TokenMask:
    bits = torch.zeros(rows, 12, dtype=torch.bool)
    for row in bits:
        row[torch.randperm(12)[:num_masked]] = True
    return TokenMask.from_bool(bits, num_masks)


def transparent(dim: int = 8, depth: int = 1, noise: float = 0.0) -> ConvDecoder2d:
    """Convolutions of zero weight: the residuals hand the restored grid to an identity projection."""
    decoder = ConvDecoder2d(dim, dim, depth, 3, 2, noise)
    for conv in decoder.convs:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    nn.init.eye_(decoder.proj.weight)
    nn.init.zeros_(decoder.proj.bias)
    return decoder


def grid_seen(decoder: ConvDecoder2d, x: Tensor, mask: TokenMask) -> Tensor:
    """What the first convolution gets, as (N, T, D)."""
    seen: list[Tensor] = []
    handle = decoder.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(x, mask, GRID)
    handle.remove()
    assert seen[0].shape[2:] == GRID
    return seen[0].flatten(2).transpose(1, 2)


@torch.no_grad()
def test_visible_tokens_go_back_to_their_places_and_zeros_elsewhere() -> None:
    mask, x = random_mask(4), torch.randn(4, 5, 8)
    seen = grid_seen(transparent(), x, mask)
    for n, hidden in enumerate(mask.mask):
        queue = iter(x[n])
        for t in range(12):
            assert torch.equal(seen[n, t], torch.zeros(8) if hidden[t] else next(queue))


@torch.no_grad()
def test_noise_is_put_at_masked_places_only() -> None:
    mask, x = random_mask(500), torch.randn(500, 5, 8)
    decoder = transparent(noise=0.01)
    seen = grid_seen(decoder, x, mask)
    assert torch.equal(seen[~mask.mask], x.flatten(0, 1))
    noise = seen[mask.mask]
    assert noise.std().item() == pytest.approx(0.01, rel=0.03)
    assert abs(noise.mean().item()) < 5 * 0.01 / noise.numel() ** 0.5
    assert len(noise.unique()) > 0.9 * noise.numel()
    assert not torch.equal(seen, grid_seen(decoder, x, mask))  # fresh every time
    torch.testing.assert_close(decoder(x, mask, GRID).std().item(), 0.01, rtol=0.03, atol=0)


@torch.no_grad()
def test_noise_stays_in_eval_mode_and_follows_the_seed() -> None:
    mask, x, decoder = random_mask(2), torch.randn(2, 5, 8), transparent(noise=0.5).eval()
    torch.manual_seed(3)
    first = decoder(x, mask, GRID)
    torch.manual_seed(3)
    assert torch.equal(decoder(x, mask, GRID), first)
    assert first.abs().sum() > 0


@torch.no_grad()
def test_predictions_come_in_the_order_of_ids_mask() -> None:
    """The convolution copies the left neighbour, so the prediction at a place names the place."""
    decoder = transparent()
    decoder.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, bias=False)])
    nn.init.zeros_(decoder.convs[0].weight)
    for d in range(8):
        decoder.convs[0].weight[d, d, 1, 0] = 1
    mask, x = random_mask(6), torch.randn(6, 5, 8)
    pred = decoder(x, mask, GRID)
    assert pred.shape == (6, 7, 8)
    for n, hidden in enumerate(mask.mask):
        places = [t for t in range(12) if hidden[t]]
        assert mask.ids_mask[n].tolist() == places
        for i, t in enumerate(places):
            expected = torch.zeros(8)
            if t % 4 > 0 and not hidden[t - 1]:
                expected = x[n, (~hidden[: t - 1]).sum()]
            torch.testing.assert_close(pred[n, i], F.gelu(F.layer_norm(expected, (8,))))


@pytest.mark.parametrize(("dim", "width", "depth"), [(8, 8, 3), (8, 4, 2), (4, 8, 1)])
@torch.no_grad()
def test_layers_match_plain_operations(dim: int, width: int, depth: int) -> None:
    decoder = ConvDecoder2d(dim, width, depth, 3, 2, 0.0)
    mask, x = random_mask(3), torch.randn(3, 5, dim)
    grid = torch.zeros(3, 12, dim)
    grid[~mask.mask] = x.flatten(0, 1)
    z = grid.transpose(1, 2).reshape(3, dim, *GRID)
    for conv in decoder.convs:
        y = F.conv2d(z, conv.weight, conv.bias, padding=1, groups=2)
        mean, var = y.mean(1, keepdim=True), y.var(1, correction=0, keepdim=True)
        y = F.gelu((y - mean) / (var + 1e-5).sqrt())
        z = z + y if z.shape == y.shape else y
    expected = decoder.proj(z.flatten(2).transpose(1, 2)[mask.mask].view(3, 7, width))
    torch.testing.assert_close(decoder(x, mask, GRID), expected, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_visible_tokens_and_every_parameter() -> None:
    decoder, mask = ConvDecoder2d(8, 8, 2, 3, 2), random_mask(2)
    x = torch.randn(2, 5, 8, requires_grad=True)
    decoder(x, mask, GRID).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_with_transparent_layers_no_gradient_comes_back_from_masked_places() -> None:
    mask, x = random_mask(2), torch.randn(2, 5, 8, requires_grad=True)
    decoder = transparent(noise=1.0)
    pred = decoder(x, mask, GRID)
    pred.square().sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert pred.abs().sum() > 0


@torch.no_grad()
def test_views_do_not_see_each_other() -> None:
    decoder, mask, x = ConvDecoder2d(8, 8, 2, 3, 2, 0.0), random_mask(3), torch.randn(3, 5, 8)
    alone = TokenMask.from_bool(mask.mask[1:2])
    torch.testing.assert_close(decoder(x, mask, GRID)[1:2], decoder(x[1:2], alone, GRID), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_input_dropout_hits_visible_tokens_in_training_only() -> None:
    decoder = ConvDecoder2d(8, 8, 1, 3, 2, mask_noise_std=1.0, input_drop_rate=0.5)
    mask, x = random_mask(50), torch.ones(50, 5, 8)
    grid = grid_seen(decoder.train(), x, mask)
    seen = grid[~mask.mask]
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert (seen == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (grid[mask.mask] != 0).all()  # the noise is spared
    assert torch.equal(grid_seen(decoder.eval(), x, mask)[~mask.mask], x.flatten(0, 1))


@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_shapes(depth: int, kernel_size: int) -> None:
    decoder = ConvDecoder2d(8, 16, depth, kernel_size, 4)
    assert len(decoder.convs) == depth
    assert decoder(torch.randn(2, 5, 8), random_mask(2), GRID).shape == (2, 7, 8)


def test_refusals_name_key_and_value() -> None:
    with pytest.raises(ValueError, match=r"kernel_size=4: must be odd; try 5"):
        ConvDecoder2d(16, 16, kernel_size=4)
    with pytest.raises(ValueError, match=r"groups=16 must divide .*embed_dim=40 and .*set groups=8"):
        ConvDecoder2d(40, 32)
    with pytest.raises(ValueError, match=r"groups=3 "):
        ConvDecoder2d(12, 32, groups=3)


def test_projections_start_from_the_given_spread() -> None:
    decoder = ConvDecoder2d(64, 64, 1, 3, 2, proj_depth=2, proj_init_std=0.02)
    layers = [layer for layer in decoder.proj if isinstance(layer, nn.Linear)]
    assert len(layers) == 2
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
