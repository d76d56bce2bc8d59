"""Targets by modality: a model of images and texts trains each as a model of that modality alone would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v.interop.build import build, check_node
from d2v.models.data2vec import Data2Vec, RegressionHead
from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder1d, ConvDecoder2d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, Targets, TokenMask

IMAGE = {
    "average_top_k_layers": 3, "layer_norms": ["instance"], "target_norms": ["layer"], "end_of_block_targets": True,
    "loss_scale": None, "loss_beta": 0.0, "cls_loss_weight": 0.5, "teacher_scope": "encoder",
}  # fmt: skip
TEXT = {
    "average_top_k_layers": 2, "layer_norms": ["layer", "instance"], "target_norms": [], "end_of_block_targets": False,
    "loss_scale": 3.0, "loss_beta": 2.0, "cls_loss_weight": 0.0, "teacher_scope": "blocks",
}  # fmt: skip
RECIPES = {"image": IMAGE, "text": TEXT}


def model(modalities: list[str], targets: dict[str, Any] | None, **recipe: Any) -> Data2Vec2:
    frontends = {"image": ImageFrontend(16, 12, 3, 2), "text": TextFrontend(16, 40, 12)}
    decoders = {"image": ConvDecoder2d(16, 8, 1, 3, 4, 0.0), "text": ConvDecoder1d(16, 8, 1, 3, 4, 0.0)}
    encoder = transformer_encoder({name: frontends[name] for name in modalities}, 16, 3, 4, prenet_depth=1)
    return Data2Vec2(encoder, {name: decoders[name] for name in modalities}, targets=targets, **recipe)


def batch(modality: str) -> Batch:
    torch.manual_seed(5)
    inputs = torch.randn(3, 2, 12, 12) if modality == "image" else torch.randint(4, 40, (3, 12))
    mask = torch.zeros(6, 16 if modality == "image" else 12, dtype=torch.bool)
    mask[:, 1::2] = True
    return Batch(modality, inputs, torch.arange(3), TokenMask.from_bool(mask, 2))


def both() -> Data2Vec2:
    torch.manual_seed(0)
    made = model(["image", "text"], {"text": TEXT}, **IMAGE)
    with torch.no_grad():
        for p in [*made.student.parameters(), *made.teacher.parameters()]:
            p += 0.2 * torch.randn_like(p)
    return made.train()


def part_of(made: Data2Vec2, modality: str) -> Data2Vec2:
    """A model of that modality alone, with the same weights."""
    alone = model([modality], None, **RECIPES[modality])
    state = made.state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    return alone.train()


@pytest.mark.parametrize("modality", RECIPES)
def test_a_step_is_that_of_the_modality_alone(modality: str) -> None:
    made = both()
    alone = part_of(made, modality)
    stepped: list[dict[str, Tensor]] = []
    for one in (made, alone):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        out = one(batch(modality))
        (out.loss_sum / out.count).backward()
        optimizer.step()
        one.update_teacher(0.5)
        assert ("cls" in out.terms) == (modality == "image")
        stepped.append({**one.state_dict(), "loss": out.loss_sum, "targets": one.targets(batch(modality))})
    for name, value in stepped[1].items():
        torch.testing.assert_close(stepped[0][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("field", IMAGE)
def test_every_field_is_the_modalitys_own(field: str) -> None:
    """A step on texts depends on each field of their recipe, and one on images does not."""

    def step(modality: str, changed: bool) -> dict[str, Tensor]:
        other = {"average_top_k_layers": 1, "layer_norms": [], "target_norms": ["layer"], "end_of_block_targets": True,
                 "loss_scale": 1.0, "loss_beta": 0.5, "teacher_scope": "context", "cls_loss_weight": 0.3}  # fmt: skip
        torch.manual_seed(0)
        frontends = {"image": ImageFrontend(16, 12, 3, 2), "text": TextFrontend(16, 40, 12, num_prefix_tokens=1)}
        encoder = transformer_encoder(frontends, 16, 3, 4, prenet_depth=1)
        decoders = {"image": ConvDecoder2d(16, 8, 1, 3, 4, 0.0), "text": ConvDecoder1d(16, 8, 1, 3, 4, 0.0)}
        own = {**TEXT, field: other[field]} if changed else TEXT
        made = Data2Vec2(encoder, decoders, targets={"text": own}, **IMAGE)  # type: ignore[arg-type]
        for p in made.student.parameters():
            p.data += 0.1 * torch.randn_like(p)
        made.update_teacher(0.5)
        return {"loss": made(batch(modality)).loss_sum, **made.teacher.state_dict()}

    for modality, differs in (("text", True), ("image", False)):
        before, after = step(modality, False), step(modality, True)
        parts = [n for n in before if not torch.equal(before[n], after[n]) and (differs or "text" not in n)]
        assert bool(parts) == differs, parts


def test_teachers_scopes_are_of_their_modality() -> None:
    made = both()
    names = dict(made.student.named_parameters())
    averaged = {name for name in names if made.is_averaged(name)}
    assert averaged == {name for name in names if name.startswith("trunk.") or ".image." in name}
    assert made.recipes["text"] == Targets(2, ("layer", "instance"), (), False, 3.0, 2.0, 0.0, "blocks")
    assert made.recipes["image"].scale(16) == 0.25


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"smell": {}}, r"targets\.smell: the modalities of this model are \['image', 'text'\]"),
        ({"text": {"average_top_k_layers": 4}}, r"targets\.text\.average_top_k_layers=4: .*choose 1 to 3"),
        ({"text": {"loss_betta": 1.0}}, r"targets\.text\.loss_betta: did you mean .*loss_beta"),
        ({"text": {"loss_beta": -1.0}}, r"targets\.text\.loss_beta=-1"),
        ({"text": {"teacher_scope": "all"}}, r"targets\.text\.teacher_scope=all: choose one of encoder"),
        ({"text": {"layer_norms": ["group"]}}, r"targets\.text\.layer_norms"),
        ({"text": {"loss_beta": 1.0}}, r"cls_loss_weight=0\.5 needs a CLS token: .*frontends\.text"),
        ({"text": {"cls_loss_weight": 2.0}}, r"targets\.text\.cls_loss_weight=2\.0 needs a CLS token"),
    ],
)
def test_what_cannot_work_is_named_by_its_key(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(["image", "text"], targets, **IMAGE)


def test_data2vec_1_has_no_cls_loss_for_any_modality() -> None:
    encoder = transformer_encoder({"image": ImageFrontend(16, 12, 3, mask_token=True)}, 16, 2, 4)
    made = Data2Vec(encoder, {"image": RegressionHead(16)}, 2, targets={"image": {"loss_beta": 1.5}})
    assert made.recipes["image"].loss_beta == 1.5
    with pytest.raises(ValueError, match=r"targets\.image\.cls_loss_weight: data2vec 1\.0 has no loss"):
        Data2Vec(encoder, {"image": RegressionHead(16)}, 2, targets={"image": {"cls_loss_weight": 1.0}})


def test_a_file_may_say_what_differs() -> None:
    node = {
        "_target_": "d2v.models.data2vec2.Data2Vec2",
        "encoder": {
            "_target_": "d2v.nn.encoder.transformer_encoder", "embed_dim": 16, "depth": 2, "num_heads": 4,
            "frontends": {"image": {"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 16,
                                    "img_size": 12, "patch_size": 3}},
        },
        "decoders": {"image": {"_target_": "d2v.nn.decoders.ConvDecoder2d", "embed_dim": 16, "decoder_dim": 8,
                               "groups": 4}},
        "average_top_k_layers": 2,
        "targets": {"image": {"loss_scale": 2.0}},
    }  # fmt: skip
    assert build(node).recipes["image"].loss_scale == 2.0
    with pytest.raises(ValueError, match="targets"):
        check_node({**node, "targets": [1]})


def test_student_and_teacher_start_from_the_same_statistics() -> None:
    made = both()
    name = "frontends.text.token_embed.weight"
    before = made.student.get_parameter(name).detach().clone()
    made.start_from("text", [torch.randint(4, 40, (50, 12))])
    assert not torch.equal(made.student.get_parameter(name), before)
    assert torch.equal(made.student.get_parameter(name), made.teacher.get_parameter(name))
