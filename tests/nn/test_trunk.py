"""The contract between a trunk and what surrounds it, and the trunk of data2vec."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from d2v.interop.build import build
from d2v.models.data2vec2 import Data2Vec2
from d2v.models.heads import FinetunedModel, MeanPoolHead
from d2v.nn.block import Block, Layer
from d2v.nn.decoders import ConvDecoder2d, PixelDecoder
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.trunk import Transformer, Trunk, checkpoint_activations, units
from d2v.types import Batch, TokenMask


class Mix(Layer):
    """A layer without attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def compute(self, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.proj(x + x.mean(dim=1, keepdim=True))
        return x + y, y


class Mixer(Trunk):
    """A trunk of another kind; ``dropped`` tokens are lost on the way."""

    def __init__(self, dim: int, depth: int, dropped: int = 0) -> None:
        super().__init__(dim, depth)
        self.mixes = nn.ModuleList(Mix(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.dropped = dropped

    def layers(self, x: Tensor, attn_bias: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        x = x[:, : x.shape[1] - self.dropped]
        for mix in self.mixes:
            x, y = mix(x)
            yield x, y

    def units(self) -> list[Layer]:
        return list(self.mixes)  # type: ignore[arg-type]

    def layer_of(self, name: str) -> int:
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) if part == "mixes" else self.depth


def frontend(dim: int = 16) -> ImageFrontend:
    return ImageFrontend(dim, 12, 3, 2)


def images(num_masks: int = 2) -> Batch:
    mask = torch.zeros(3 * num_masks, 16, dtype=torch.bool)
    mask[:, ::2] = True
    return Batch("image", torch.randn(3, 2, 12, 12), torch.arange(3), TokenMask.from_bool(mask, num_masks))


def test_a_trunk_of_another_kind_is_pretrained_and_finetuned() -> None:
    encoder = Encoder({"image": frontend()}, Mixer(16, 3), {"image": Mixer(16, 1)})
    assert encoder.depth == 4
    model = Data2Vec2(encoder, {"image": ConvDecoder2d(16, 8, 1, 3, 4)}, average_top_k_layers=3)
    out = model(images())
    (out.loss_sum / out.count).backward()
    assert [name for name, p in model.student.named_parameters() if p.grad is None] == []
    assert len(list(units(model.student))) == 4
    model.update_teacher(0.9)
    assert FinetunedModel(encoder, MeanPoolHead(16, 5))(images()).shape == (3, 5)
    with pytest.raises(ValueError, match=r"average_top_k_layers=4.*3 shared blocks"):
        Data2Vec2(encoder, {"image": ConvDecoder2d(16, 8, 1, 3, 4)}, average_top_k_layers=4)


@torch.no_grad()
def test_layers_and_forward_say_the_same() -> None:
    for trunk in (Transformer(16, 3, 4, norm_first=True), Mixer(16, 3)):
        x = torch.randn(2, 5, 16)
        outputs = list(trunk.layers(x))
        assert len(outputs) == trunk.depth == 3
        assert torch.equal(trunk(x), trunk.norm(outputs[-1][0]))
        assert not torch.equal(trunk(x), outputs[-1][0])


@torch.no_grad()
def test_a_bias_reaches_every_block() -> None:
    trunk, x = Transformer(16, 2, 4).eval(), torch.randn(1, 4, 16)
    hidden = torch.zeros(1, 1, 1, 4).index_fill_(3, torch.tensor([3]), float("-inf"))
    other = x.clone()
    other[:, 3] += 1
    for (ours, _), (theirs, _) in zip(trunk.layers(x, hidden), trunk.layers(other, hidden), strict=True):
        assert torch.equal(ours[:, :3], theirs[:, :3])


def test_tokens_that_a_trunk_loses_are_not_taken_for_others() -> None:
    encoder = Encoder({"image": frontend()}, Mixer(16, 2, dropped=1))
    with pytest.raises(ValueError, match="Mixer returned 16 tokens of 17"):
        encoder(images())


def test_every_width_is_the_trunks() -> None:
    with pytest.raises(ValueError, match=r"frontends\.image\.embed_dim=12 must equal embed_dim=16"):
        Encoder({"image": frontend(12)}, Mixer(16, 1))
    with pytest.raises(ValueError, match=r"prenets\.image\.embed_dim=12 must equal embed_dim=16"):
        Encoder({"image": frontend()}, Mixer(16, 1), {"image": Mixer(12, 1)})


def test_layers_of_parameters() -> None:
    encoder = transformer_encoder({"image": frontend()}, 16, depth=2, num_heads=4, prenet_depth=2, final_norm=True)
    found = {name: encoder.layer_of(name) for name, _ in encoder.named_parameters()}
    expected = {"frontends.": 0, "input_norms.": 0, "prenets.image.blocks.0.": 1, "prenets.image.blocks.1.": 2,
                "trunk.blocks.0.": 3, "trunk.blocks.1.": 4, "trunk.norm.": 5}  # fmt: skip
    assert found == {name: value for name in found for part, value in expected.items() if name.startswith(part)}
    assert set(found.values()) == set(range(6))
    assert encoder.depth == 4


def test_units_are_all_blocks_and_are_computed_again() -> None:
    encoder = transformer_encoder({"image": frontend()}, 16, depth=2, num_heads=4, prenet_depth=1)
    decoder = PixelDecoder(16, 12, 3, 2, decoder_dim=8, depth=2, num_heads=2)
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    assert list(units(model)) == [module for module in model.modules() if isinstance(module, Block)]
    assert len(list(units(model))) == 5
    checkpoint_activations(model)
    assert all(unit.checkpointing for unit in units(model))
    mixer = Mixer(16, 2).train()
    gradients = []
    for _ in range(2):
        mixer.zero_grad()
        mixer(torch.ones(1, 3, 16)).square().sum().backward()
        gradients.append([p.grad.clone() for p in mixer.parameters() if p.grad is not None])
        checkpoint_activations(mixer)
    torch.testing.assert_close(*gradients)


def test_drop_path_rates_grow_or_are_given() -> None:
    rates = [block.drop_path.drop_prob for block in Transformer(8, 3, 2, drop_path_rate=0.4).units()]
    assert rates == pytest.approx([0, 0.2, 0.4])
    given = Transformer(8, 2, 2, drop_path_rate=[0.3, 0.1]).units()
    assert [block.drop_path.drop_prob for block in given] == [0.3, 0.1]


def test_an_encoder_and_its_trunk_are_nodes_of_a_file() -> None:
    node = {
        "_target_": "d2v.nn.encoder.Encoder",
        "frontends": {"image": {"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 16, "img_size": 12,
                                "patch_size": 3}},
        "trunk": {"_target_": "d2v.nn.trunk.Transformer", "embed_dim": 16, "depth": 2, "num_heads": 4},
    }  # fmt: skip
    encoder = build(node)
    assert isinstance(encoder.trunk, Transformer)
    assert encoder.trunk.depth == 2
    with pytest.raises(ValueError, match=r"trunk.*makes no Trunk"):
        build({**node, "trunk": {"_target_": "d2v.models.data2vec.RegressionHead", "embed_dim": 16}})


def test_an_initial_encoder_is_the_same_whichever_way_it_is_built() -> None:
    torch.manual_seed(0)
    flat = transformer_encoder({"image": frontend()}, 16, 2, 4, prenet_depth=1)
    torch.manual_seed(0)
    parts = Encoder({"image": frontend()}, prenets={"image": Transformer(16, 1, 4)}, trunk=Transformer(16, 2, 4))
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in flat.state_dict().items())


def test_a_decoder_refuses_another_number_of_tokens_than_its_grid_has() -> None:
    mask = TokenMask.from_bool(torch.tensor([[True, False, True, False]]))
    with pytest.raises(RuntimeError, match="unflatten"):
        ConvDecoder2d(16, 8, 1, 3, 4)(torch.randn(1, 2, 16), mask, (2, 4))
