"""The teacher of data2vec 2.0: frozen, without gradients, moved by updates alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder2d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.types import Batch

MakeModel = Callable[..., Data2Vec2]

MakeBatch = Callable[..., Batch]


def test_teacher_is_frozen_and_in_eval_whatever_train_is_called_with(make_model: MakeModel) -> None:
    model = make_model()
    for call in (model.train, lambda: model.train(True), model.eval, lambda: model.train(False), model.train):
        call()
        assert not any(m.training for m in model.teacher.modules())
    assert model.student.training
    assert model.decoders.training
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert model.train() is model


def test_dropout_is_off_in_the_teacher_and_on_in_the_student(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(
        drop_rate=0.5, post_mlp_drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.3, mlp_drop_rate=0.3
    ).train()
    batch = make_batch()
    assert torch.equal(model.targets(batch), model.targets(batch))
    assert model(batch).loss_sum.item() != model(batch).loss_sum.item()


def test_teacher_gets_no_gradient_and_no_graph(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(cls_loss_weight=0.1)
    batch = make_batch()
    assert not model.targets(batch).requires_grad
    assert model.targets(batch).dtype == torch.float32
    model(batch).loss_sum.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is not None for p in model.decoders.parameters())


def test_the_teacher_starts_as_the_student() -> None:
    encoder = transformer_encoder({"image": ImageFrontend(16, 12, 3)}, 16, 2, 4, 1)
    model = Data2Vec2(encoder, {"image": ConvDecoder2d(16, 8, groups=2)}, 2)
    for (name, ours), theirs in zip(
        model.student.state_dict().items(), model.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert model.recipes["image"].scale(16) == 0.25  # 1 / sqrt(16)


def test_update_teacher_moves_the_teacher_only(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(make_batch())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the forward pass moves nothing
    model.update_teacher(0.75)
    for key, value in model.state_dict().items():
        if key.startswith("teacher.") and not key.endswith("positions"):
            student = before[key.replace("teacher.", "student.", 1)]
            torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * student)
        else:
            assert torch.equal(value, before[key])
