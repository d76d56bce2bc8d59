"""The encoder: what it sees under a mask, what it returns, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.types import Batch, TokenMask

MakeEncoder = Callable[..., Encoder]
MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize("options", [{}, {"prenet_depth": 0}, {"norm_first": True}, {"num_prefix_tokens": 0}])
@torch.no_grad()
def test_masked_context_equals_gathering_by_hand(
    make_encoder: MakeEncoder, make_batch: MakeBatch, options: dict
) -> None:
    encoder, batch = make_encoder(**options).eval(), make_batch(3, 2)
    features = encoder.frontend("image").embed(batch.inputs)
    assert batch.mask is not None
    result = encoder.context("image", features, batch.mask)[0]
    for n, hidden in enumerate(batch.mask.mask):
        x = features[n // 2][~hidden][None]
        prefix = encoder.frontend("image").prefix_tokens
        if prefix is not None:
            x = torch.cat([prefix[None], x], 1)
        if "image" in encoder.input_norms:
            x = encoder.input_norms["image"](x)
        if "image" in encoder.prenets:
            for block in encoder.prenets["image"].blocks:
                x = block(x)[0]
        torch.testing.assert_close(result[n : n + 1], x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_tokens_do_not_reach_the_context(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder, batch = make_encoder().eval(), make_batch(2, 1)
    assert batch.mask is not None
    features = encoder.frontend("image").embed(batch.inputs)
    changed = features.masked_fill(batch.mask.mask[:, :, None], 1e6)
    assert torch.equal(
        encoder.context("image", features, batch.mask)[0], encoder.context("image", changed, batch.mask)[0]
    )


@torch.no_grad()
def test_order_of_the_visible_tokens_is_carried_through(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder, batch = make_encoder().eval(), make_batch(2, 2)
    mask = batch.mask
    assert mask is not None
    features = encoder.frontend("image").embed(batch.inputs)
    order = torch.randperm(mask.ids_keep.shape[1])
    shuffled = TokenMask(mask.mask, mask.ids_keep[:, order], mask.ids_mask, mask.ids_restore, 2)
    kept, moved = (encoder.context("image", features, m)[0] for m in (mask, shuffled))
    torch.testing.assert_close(moved[:, 0], kept[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[:, 1:], kept[:, 1:][:, order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_do_not_depend_on_the_rest_of_the_batch(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder = make_encoder().eval()
    together = encoder(make_batch([4, 5, 6])).x
    torch.testing.assert_close(encoder(make_batch([6, 9])).x[0], together[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 3])
@torch.no_grad()
def test_forward_returns_everything_unmasked(
    make_encoder: MakeEncoder, make_batch: MakeBatch, norm_first: bool, num_prefix_tokens: int
) -> None:
    encoder = make_encoder(norm_first=norm_first, num_prefix_tokens=num_prefix_tokens).eval()
    batch = make_batch(2)
    out = encoder(batch, return_layers=True)
    assert out.x.shape == (2, num_prefix_tokens + 16, 16)
    assert out.num_prefix_tokens == num_prefix_tokens
    assert torch.equal(out.patch_tokens, out.x[:, num_prefix_tokens:])
    assert [tuple(h.shape) for h in out.hidden_states] == [tuple(out.x.shape)] * 2
    last = out.hidden_states[-1]
    assert torch.equal(out.x, encoder.trunk.norm(last) if norm_first else last)
    assert encoder(batch).hidden_states == ()
    assert torch.equal(encoder(batch).x, out.x)
    unmasked = Batch("image", batch.inputs, batch.sample_ids)
    assert torch.equal(encoder(unmasked).x, out.x)
    x = encoder.context("image", encoder.frontend("image").embed(batch.inputs))[0]
    for block, hidden in zip(encoder.trunk.blocks, out.hidden_states, strict=True):
        x = block(x)[0]
        assert torch.equal(x, hidden)


def test_post_norm_has_an_input_norm_and_pre_norm_a_final_one(make_encoder: MakeEncoder) -> None:
    post, pre = make_encoder(prenet_depth=0), make_encoder(prenet_depth=0, norm_first=True)
    assert isinstance(post.input_norms["image"], nn.LayerNorm)
    assert isinstance(post.trunk.norm, nn.Identity)
    assert len(pre.input_norms) == 0
    assert isinstance(pre.trunk.norm, nn.LayerNorm)


def test_the_input_norm_can_be_left_out_by_a_frontend() -> None:
    frontend = ImageFrontend(16, 12, 3)
    frontend.input_norm = False
    assert "image" not in transformer_encoder({"image": frontend}, 16, 1, 4).input_norms


@pytest.mark.parametrize(("depth", "prenet_depth"), [(3, 0), (2, 2)])
def test_depths(make_encoder: MakeEncoder, depth: int, prenet_depth: int) -> None:
    encoder = make_encoder(depth=depth, prenet_depth=prenet_depth)
    assert len(encoder.trunk.blocks) == depth
    assert [len(prenet.blocks) for prenet in encoder.prenets.values()] == [prenet_depth] * (prenet_depth > 0)
    assert encoder.depth == depth + prenet_depth


def test_drop_path_grows_linearly_from_zero_over_prenet_and_shared_blocks(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(depth=3, prenet_depth=2, drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for block in [*encoder.prenets["image"].blocks, *encoder.trunk.blocks]]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_initialisation() -> None:
    encoder = transformer_encoder({"image": ImageFrontend(64, 16, 4)}, 64, 2, 4, 1)
    linears = [m for blocks in (encoder.prenets, encoder.trunk) for m in blocks.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 12
    assert all(m.weight.std().item() == pytest.approx(0.02, rel=0.1) for m in linears)
    assert all(m.bias is not None and not m.bias.any() for m in linears)
    assert encoder.frontends["image"].proj.weight.std() > 0.05  # the patch embedding keeps its own


def test_options_reach_the_blocks(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(
        norm_eps=1e-3, drop_rate=0.1, attn_drop_rate=0.2, mlp_drop_rate=0.3, post_mlp_drop_rate=0.4, mlp_ratio=3.0
    )
    for block in [*encoder.prenets["image"].blocks, *encoder.trunk.blocks]:
        assert block.norm1.eps == block.norm2.eps == 1e-3
        assert block.attn.proj_drop.p == 0.1
        assert block.attn.attn_drop_rate == 0.2
        assert block.mlp.drop1.p == 0.3
        assert block.post_mlp_drop.p == 0.4
        assert block.mlp.fc1.out_features == 48
    assert encoder.input_norms["image"].eps == 1e-3


def test_errors_name_key_value_and_fix() -> None:
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide embed_dim=16"):
        transformer_encoder({"image": ImageFrontend(16, 12, 3)}, 16, 1, 5)
    with pytest.raises(ValueError, match=r"frontends\.image\.embed_dim=16 must equal embed_dim=32"):
        transformer_encoder({"image": ImageFrontend(16, 12, 3)}, 32, 1, 4)


def test_an_unknown_modality_is_named_with_those_there_are(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    with pytest.raises(KeyError, match=r"'smell'.*\['image'\]"):
        encoder(Batch("smell", torch.zeros(1, 2, 12, 12), torch.zeros(1, dtype=torch.int64)))


@torch.no_grad()
def test_modalities_share_the_blocks_and_nothing_else(make_batch: MakeBatch) -> None:
    names: Sequence[str] = ("left", "right")
    encoder = transformer_encoder({n: ImageFrontend(16, 12, 3, 2) for n in names}, 16, 2, 4, 1).eval()
    assert len(encoder.trunk.blocks) == 2
    batch = make_batch(2)
    outputs = [encoder(Batch(n, batch.inputs, batch.sample_ids)).x for n in names]
    assert not torch.allclose(*outputs)
    for part in (encoder.frontends, encoder.input_norms, encoder.prenets):
        part["right"].load_state_dict(part["left"].state_dict())
    outputs = [encoder(Batch(n, batch.inputs, batch.sample_ids)).x for n in names]
    assert torch.equal(*outputs)
