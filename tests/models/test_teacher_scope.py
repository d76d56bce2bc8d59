"""What the teacher averages, what it copies, and what it sees."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from d2v.models.data2vec2 import Data2Vec2
from d2v.models.masked import evenly
from d2v.nn.decoders import ConvDecoder1d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.masking import RandomMask, SpanMask
from d2v.types import Batch, TokenMask

CONVS = [[8, 10, 5], [8, 4, 2]]


def speech(scope: str, **encoder: float) -> tuple[Data2Vec2, Batch]:
    made = transformer_encoder({"speech": SpeechFrontend(16, 4, CONVS, 1, 3, 4)}, 16, 2, 4, 1, **encoder)
    model = Data2Vec2(made, {"speech": ConvDecoder1d(16, 8, 1, 3, 4)}, 2, target_norms=(), teacher_scope=scope)
    rngs = [np.random.default_rng(i) for i in range(2)]
    inputs = torch.randn(2, 200)
    frames = made.frontend("speech").token_grid(inputs)
    mask = TokenMask.from_bool(torch.from_numpy(SpanMask(2, 0.5, 2, 0.1)(frames, rngs)), 2)
    return model, Batch("speech", inputs, torch.arange(2), mask)


def text(scope: str) -> tuple[Data2Vec2, Batch]:
    made = transformer_encoder({"text": TextFrontend(16, 40, 12)}, 16, 2, 4)
    decoder = ConvDecoder1d(16, 8, 1, 3, 1, residual=False, proj_depth=2)
    model = Data2Vec2(made, {"text": decoder}, 2, target_norms=(), loss_scale=1.0, teacher_scope=scope)
    mask = TokenMask.from_bool(torch.from_numpy(RandomMask(2, 0.5)((12,), [np.random.default_rng(0)] * 3)), 2)
    return model, Batch("text", torch.randint(4, 40, (3, 12)), torch.arange(3), mask)


AVERAGED = {
    ("speech", "encoder"): {"frontends.speech.convs.0.weight", "frontends.speech.alibi_scale",
                            "trunk.blocks.0.norm1.weight"},
    ("speech", "context"): {"frontends.speech.alibi_scale", "frontends.speech.positions.convs.0.weight",
                            "input_norms.speech.weight", "prenets.speech.blocks.0.norm1.bias",
                            "trunk.blocks.1.mlp.fc1.weight"},
    ("speech", "blocks"): {"trunk.blocks.1.mlp.fc1.weight"},
    ("text", "context"): {"trunk.blocks.1.mlp.fc1.weight"},
    ("text", "blocks"): {"trunk.blocks.1.mlp.fc1.weight"},
}  # fmt: skip
COPIED = {
    ("speech", "encoder"): set(),
    ("speech", "context"): {"frontends.speech.convs.0.weight", "frontends.speech.conv_norms.1.bias",
                            "frontends.speech.norm.weight", "frontends.speech.proj.weight"},
    ("speech", "blocks"): {"frontends.speech.alibi_scale", "prenets.speech.blocks.0.norm1.bias",
                           "input_norms.speech.weight"},
    ("text", "context"): {"frontends.text.token_embed.weight", "frontends.text.norm.bias"},
    ("text", "blocks"): {"frontends.text.token_embed.weight", "frontends.text.pos_embed.weight"},
}  # fmt: skip


@pytest.mark.parametrize(("modality", "scope"), AVERAGED)
def test_the_rest_of_the_teacher_follows_the_student(modality: str, scope: str) -> None:
    model, _ = {"speech": speech, "text": text}[modality](scope)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    for p in model.student.parameters():
        p.data += torch.randn_like(p)
    model.update_teacher(0.9)
    student = dict(model.student.named_parameters())
    for name, p in model.teacher.named_parameters():
        expected = 0.9 * before[name] + 0.1 * student[name] if model.is_averaged(name) else student[name]
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
    names = set(student)
    assert AVERAGED[modality, scope] <= {name for name in names if model.is_averaged(name)}
    assert COPIED[modality, scope] <= {name for name in names if not model.is_averaged(name)}


@pytest.mark.parametrize(("modality", "scope"), [("speech", "context"), ("text", "blocks"), ("speech", "encoder")])
def test_the_teacher_sees_the_students_features_outside_its_scope(modality: str, scope: str) -> None:
    model, batch = {"speech": speech, "text": text}[modality](scope)
    model.eval()
    reference = model.targets(batch)
    for part in ("frontends.speech.convs.", "frontends.text.token_embed."):
        for owner in (model.teacher, model.student):
            changed = copy.deepcopy(model)
            own = changed.teacher if owner is model.teacher else changed.student
            for name, p in own.named_parameters():
                if name.startswith(part):
                    p.data += 0.5 * torch.randn_like(p)
            moved = not torch.allclose(changed.targets(batch), reference, atol=1e-6)
            has_part = any(name.startswith(part) for name, _ in own.named_parameters())
            assert moved == (has_part and (owner is model.teacher) == (scope == "encoder"))


def test_no_gradient_reaches_the_features_through_the_targets() -> None:
    model, batch = speech("context")
    features = model.student.frontend("speech").embed(batch.inputs)
    assert features.requires_grad
    assert not model.targets(batch, features).requires_grad


def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_scope=all: choose one of encoder, context, transformer, blocks"):
        speech("all")


def test_a_dropped_layer_is_skipped_and_has_gradients_all_the_same() -> None:
    model, batch = speech("context", layer_drop_rate=1.0)
    model.train()
    x = torch.randn(2, 5, 16)
    for block in (*model.student.trunk.blocks, *model.student.prenets["speech"].blocks):
        assert torch.equal(block(x)[0], x)
        assert not torch.equal(block.eval()(x)[0], x)
        block.train()
    out = model(batch)
    (out.loss_sum / out.count).backward()
    for name, p in model.student.named_parameters():
        assert p.grad is not None, name
        assert ("blocks" not in name and "prenets" not in name) or (p.grad == 0).all()


def test_layers_are_dropped_at_their_rate() -> None:
    model, _ = speech("context", layer_drop_rate=0.3)
    block, x = model.student.trunk.blocks[0].train(), torch.randn(1, 3, 16)
    dropped = [torch.equal(block(x)[0], x) for _ in range(300)]
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("make", [speech, text])
def test_local_features_are_there_to_be_watched(make: object) -> None:
    model, batch = make("context")  # type: ignore[operator]
    out = model(batch)
    assert out.watched["frontend"].ndim == 2
    assert 1 <= len(out.watched["frontend"]) <= 256
    assert not out.watched["frontend"].requires_grad


def test_features_to_watch_are_spread_over_the_whole_batch() -> None:
    tokens = torch.arange(24.0).view(2, 12, 1)
    assert evenly(tokens, 6).flatten().tolist() == [0, 4, 8, 12, 16, 20]
    assert evenly(tokens, 100).flatten().tolist() == list(range(24))
