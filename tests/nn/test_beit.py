"""What data2vec 1.0 takes from BEiT: relative positions, layer scale, a CLS and a mask token."""

from __future__ import annotations

import pytest
import torch
from timm.models.beit import Block as BeitBlock
from timm.models.beit import RelativePositionBias as TimmBias
from torch import Tensor, nn

from d2v.nn.block import Block
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import BeitFrontend
from d2v.nn.positions import RelativePositionBias
from d2v.types import Batch, TokenMask

GRIDS = [(4, 4), (2, 3), (3, 1), (1, 1)]


def perturb(module: nn.Module, std: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn_like(parameter)
    return module.eval()


def random_mask(rows: int, num_tokens: int, num_masked: int, num_masks: int = 1) -> TokenMask:
    bits = torch.zeros(rows, num_tokens, dtype=torch.bool)
    for row in bits:
        row[torch.randperm(num_tokens)[:num_masked]] = True
    return TokenMask.from_bool(bits, num_masks)


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_every_offset_has_its_own_entry_and_cls_has_three(grid: tuple[int, int]) -> None:
    made, (rows, columns) = RelativePositionBias(grid, 3), grid
    offsets = (2 * rows - 1) * (2 * columns - 1)
    assert made.table.shape == (offsets + 3, 3)
    assert not made.table.any()  # BEiT starts without a bias
    made.table.normal_()
    bias = made()
    assert bias.shape == (1, 3, 1 + rows * columns, 1 + rows * columns)
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, right = i // columns - j // columns, i % columns - j % columns
            entry = (down + rows - 1) * (2 * columns - 1) + (right + columns - 1)
            assert torch.equal(bias[0, :, 1 + i, 1 + j], made.table[entry])
        assert torch.equal(bias[0, :, 0, 1 + i], made.table[offsets])
        assert torch.equal(bias[0, :, 1 + i, 0], made.table[offsets + 1])
    assert torch.equal(bias[0, :, 0, 0], made.table[offsets + 2])


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_the_bias_is_timms(grid: tuple[int, int]) -> None:
    made, theirs = RelativePositionBias(grid, 4), TimmBias(grid, 4)
    theirs.relative_position_bias_table.normal_()
    made.table.copy_(theirs.relative_position_bias_table)
    assert torch.equal(made()[0], theirs())


def test_the_index_is_no_state() -> None:
    made = RelativePositionBias((2, 3), 4)
    assert list(made.state_dict()) == ["table"]
    assert [name for name, _ in made.named_parameters()] == ["table"]
    made().square().sum().backward()  # zero, but there
    assert made.table.grad is not None


def pair(layer_scale_init: float | None, grid: tuple[int, int] | None) -> tuple[Block, BeitBlock]:
    """Ours and timm's with the same weights; timm's has no bias of keys."""
    ours = Block(16, 4, mlp_ratio=2.0, norm_first=True, layer_scale_init=layer_scale_init, rel_pos_grid=grid)
    perturb(ours)
    theirs = BeitBlock(16, 4, mlp_ratio=2.0, qkv_bias=True, init_values=layer_scale_init, window_size=grid).eval()
    ours.attn.qkv.bias.data[16:32] = 0
    state = ours.state_dict()
    bias = state.pop("attn.qkv.bias")
    state |= {"attn.q_bias": bias[:16], "attn.v_bias": bias[32:]}
    for name, other in (
        ("scale1.gamma", "gamma_1"),
        ("scale2.gamma", "gamma_2"),
        ("rel_pos.table", "attn.relative_position_bias_table"),
    ):
        if name in state:
            state[other] = state.pop(name)
    left = theirs.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert {key for key in left.missing_keys if not key.endswith(("index", "k_bias"))} == set()
    return ours, theirs


@pytest.mark.parametrize("grid", [None, (2, 3)])
@pytest.mark.parametrize("layer_scale_init", [None, 0.1])
@torch.no_grad()
def test_a_block_is_timms(layer_scale_init: float | None, grid: tuple[int, int] | None) -> None:
    ours, theirs = pair(layer_scale_init, grid)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [None, (2, 3)])
@torch.no_grad()
def test_a_block_with_a_shared_bias_is_timms(grid: tuple[int, int] | None) -> None:
    ours, theirs = pair(0.1, grid)
    x, bias = torch.randn(2, 7, 16), torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(ours(x, bias)[0], theirs(x, shared_rel_pos_bias=bias[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours(x, bias)[0], ours(x)[0], atol=1e-3)


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_layer_scale_multiplies_both_branches(norm_first: bool) -> None:
    made, x = perturb(Block(8, 2, mlp_ratio=2.0, norm_first=norm_first, layer_scale_init=0.3)), torch.randn(2, 5, 8)
    one, two = made.scale1.gamma, made.scale2.gamma
    if norm_first:
        middle = x + one * made.attn(made.norm1(x))
        mlp_output = made.mlp(made.norm2(middle))
        expected = middle + two * mlp_output
    else:
        middle = made.norm1(x + one * made.attn(x))
        mlp_output = made.mlp(middle)
        expected = made.norm2(middle + two * mlp_output)
    out, ours = made(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, mlp_output, rtol=1e-5, atol=1e-5)  # before its factor


def test_layer_scale_starts_where_it_is_told_or_is_not_there() -> None:
    made = Block(8, 2, layer_scale_init=1e-4)
    assert torch.equal(made.scale1.gamma, torch.full((8,), 1e-4))
    assert torch.equal(made.scale2.gamma, torch.full((8,), 1e-4))
    assert made.scale1.gamma is not made.scale2.gamma
    assert not any("scale" in name or "rel_pos" in name for name, _ in Block(8, 2).named_parameters())


def beit(**options: object) -> BeitFrontend:
    made = BeitFrontend(16, 4, 12, 3, 2, **options)  # type: ignore[arg-type]
    perturb(made)
    return made


@torch.no_grad()
def test_patches_have_no_positions_and_cls_comes_first() -> None:
    made, images = beit(), torch.randn(2, 2, 12, 12)
    x = made.embed(images)
    for t in range(16):
        patch = images[:, :, t // 4 * 3 : t // 4 * 3 + 3, t % 4 * 3 : t % 4 * 3 + 3].flatten(1)
        expected = patch @ made.proj.weight.flatten(1).T + made.proj.bias
        torch.testing.assert_close(x[:, t], expected, rtol=1e-4, atol=1e-5)
    tokens = made.tokens(x, None)
    assert made.num_prefix_tokens == 1
    assert torch.equal(tokens[:, 0], made.prefix_tokens.expand(2, -1))  # type: ignore[union-attr]
    assert torch.equal(tokens[:, 1:], x)
    assert "positions" not in made.state_dict()


def test_tokens_start_small() -> None:
    made = BeitFrontend(4000, 4, 12, 3)
    for token in (made.prefix_tokens, made.mask_token):
        assert token is not None
        assert token.std().item() == pytest.approx(0.02, rel=0.1)
    assert BeitFrontend(16, 4, 12, 3, mask_token=False).mask_token is None


@pytest.mark.parametrize("num_masks", [1, 3])
@torch.no_grad()
def test_under_a_mask_the_bias_is_that_of_the_visible_tokens(num_masks: int) -> None:
    made, mask = beit(), random_mask(2 * num_masks, 16, 9, num_masks)
    full = made.attn_bias(16, None)
    assert full is not None
    assert full.shape == (1, 4, 17, 17)
    bias = made.attn_bias(16, mask)
    assert bias is not None
    assert bias.shape == (2 * num_masks, 4, 8, 8)
    for n, kept in enumerate(mask.ids_keep.tolist()):
        rows = [0, *(1 + t for t in kept)]
        assert torch.equal(bias[n], full[0][:, rows][:, :, rows])


@torch.no_grad()
def test_a_masked_context_is_the_whole_one_without_the_masked_tokens() -> None:
    """With attention to masked tokens ruled out, what is visible does not depend on whether they are there."""
    encoder = transformer_encoder({"image": beit()}, 16, 2, 4, mlp_ratio=2.0, norm_first=True, layer_scale_init=0.5)
    perturb(encoder)
    mask, x = random_mask(2, 16, 9), torch.randn(2, 16, 16)
    visible, bias = encoder.context("image", x, mask)
    whole, full = encoder.context("image", x)
    assert full is not None
    hidden = nn.functional.pad(mask.mask, (1, 0))
    full = full.masked_fill(hidden[:, None, None], float("-inf"))
    for block in encoder.trunk.blocks:
        visible, whole = block(visible, bias)[0], block(whole, full)[0]
    for n in range(2):
        torch.testing.assert_close(visible[n], whole[n][~hidden[n]], rtol=1e-4, atol=1e-5)


def test_without_a_shared_bias_there_is_none() -> None:
    made = beit(shared_bias=False)
    assert made.rel_pos is None
    assert made.attn_bias(16, None) is None
    assert made.attn_bias(16, random_mask(1, 16, 3)) is None


@torch.no_grad()
def test_every_block_may_have_a_bias_of_its_own() -> None:
    encoder = transformer_encoder(
        {"image": beit(shared_bias=False)}, 16, 2, 4, prenet_depth=1, norm_first=True, rel_pos_grid=[4, 4]
    )  # type: ignore[arg-type]  # as YAML gives it
    perturb(encoder)
    blocks = [*encoder.prenets["image"].blocks, *encoder.trunk.blocks]
    assert [tuple(block.rel_pos.table.shape) for block in blocks] == [(52, 4)] * 3
    batch = Batch("image", torch.randn(1, 2, 12, 12), torch.zeros(1, dtype=torch.int64))
    before = encoder(batch).x
    for block in blocks:
        kept = block.rel_pos.table.clone()
        block.rel_pos.table.normal_()
        assert not torch.allclose(encoder(batch).x, before, atol=1e-4)
        block.rel_pos.table.copy_(kept)
    plain = transformer_encoder({"image": beit()}, 16, 2, 4)
    assert all(block.rel_pos is None for block in plain.trunk.blocks)


@torch.no_grad()
def test_layer_scale_reaches_every_block_of_an_encoder() -> None:
    encoder = transformer_encoder({"image": beit()}, 16, 2, 4, prenet_depth=1, layer_scale_init=0.25)
    for block in [*encoder.prenets["image"].blocks, *encoder.trunk.blocks]:
        assert (block.scale1.gamma == 0.25).all()
        assert (block.scale2.gamma == 0.25).all()


@pytest.mark.parametrize(
    ("norm_first", "final_norm", "is_there"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
@torch.no_grad()
def test_the_final_norm_is_there_where_blocks_are_pre_norm_or_as_asked(
    norm_first: bool, final_norm: bool | None, is_there: bool
) -> None:
    encoder = transformer_encoder(
        {"image": beit()}, 16, 1, 4, norm_first=norm_first, final_norm=final_norm, norm_eps=1e-3
    )
    assert isinstance(encoder.trunk.norm, nn.LayerNorm if is_there else nn.Identity)
    if is_there:
        assert encoder.trunk.norm.eps == 1e-3
        perturb(encoder)
    out = encoder(Batch("image", torch.randn(1, 2, 12, 12), torch.zeros(1, dtype=torch.int64)), return_layers=True)
    assert torch.equal(out.x, encoder.trunk.norm(out.hidden_states[-1]))
    assert torch.equal(out.x, out.hidden_states[-1]) != is_there


def test_gradients_reach_every_parameter_of_a_beit() -> None:
    encoder = transformer_encoder(
        {"image": beit(mask_token=False)}, 16, 2, 4, norm_first=True, layer_scale_init=0.1, rel_pos_grid=(4, 4)
    )
    perturb(encoder)
    out: Tensor = encoder(Batch("image", torch.randn(2, 2, 12, 12), torch.arange(2))).x
    out.square().mul(torch.randn_like(out)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
