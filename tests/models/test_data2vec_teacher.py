"""The teacher of data2vec 1.0: never trained, right after every update, targets that depend on nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from slow_data2vec import RECIPES, Options, averaged, build, each_modality, make_batch, parameters, perturb, rows, run

from d2v.types import TeacherScope, TokenMask


@each_modality
def test_the_teacher_never_trains_and_never_is_in_training_mode(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    for call in (model.train, model.eval, lambda: model.train(True), lambda: model.train(False), model.train):
        call()
        assert not any(m.training for m in model.teacher.modules())
    assert model.student.training
    assert model.heads.training
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    assert not any(p.requires_grad for p in model.teacher.parameters())
    model(batch).loss_sum.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for m in (model.student, model.heads) for p in m.parameters()}
    assert {p.dtype for p in model.bfloat16().teacher.parameters()} == {torch.float32}


@each_modality
def test_dropout_is_the_students_alone(o: Options) -> None:
    model = build(o, drop_rate=0.3, attn_drop_rate=0.3, mlp_drop_rate=0.3, post_mlp_drop_rate=0.3, drop_path_rate=0.3)
    batch = make_batch(o)
    for module in (model.student, model.teacher):
        module.frontends[o.modality].input_drop_rate = 0.3
    targets = model.targets(batch)
    assert torch.equal(model.targets(batch), targets)
    assert model(batch).loss_sum.item() != model(batch).loss_sum.item()
    model.eval()
    assert torch.equal(model.targets(batch), targets)
    assert model(batch).loss_sum.item() == model(batch).loss_sum.item()


def test_embedding_dropout_differs_between_views_and_spares_the_teacher() -> None:
    o = replace(RECIPES["text"], num_masks=2)
    model, batch = build(o), make_batch(o)
    for module in (model.student, model.teacher):
        module.frontends["text"].drop.p = 0.5
    assert torch.equal(model.targets(batch), model.targets(batch))
    assert batch.mask is not None
    same = TokenMask.from_bool(batch.mask.mask[::2].repeat_interleave(2, 0), 2)
    hidden, _ = model.student.frontend("text").hide(batch.inputs, same)
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize("scope", ["encoder", "context", "transformer", "blocks"])
@each_modality
def test_after_an_update_the_teacher_averages_its_scope_and_copies_the_rest(o: Options, scope: TeacherScope) -> None:
    o = replace(o, scope=scope)
    model = build(o)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    perturb(model.student, 0.3, 9)
    model.update_teacher(0.75)
    student, num_copied = dict(model.student.named_parameters()), 0
    for name, p in model.teacher.named_parameters():
        if name.endswith("mask_token"):
            continue  # the teacher never sees it
        assert model.is_averaged(name) == averaged(name, o), name
        expected = 0.75 * before[name] + 0.25 * student[name] if averaged(name, o) else student[name]
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        num_copied += not averaged(name, o)
    assert (num_copied == 0) == (scope == "encoder")


@pytest.mark.parametrize("scope", ["encoder", "context", "transformer", "blocks"])
@each_modality
def test_a_teacher_whose_student_moves_is_right_after_every_update(o: Options, scope: TeacherScope) -> None:
    """Targets as from a teacher made of averages and copies by hand."""
    o = replace(o, scope=scope)
    model, batch = build(o), make_batch(o, 2)
    teacher = parameters(model.teacher)
    perturb(model.student, 0.1, 9)
    model.update_teacher(0.5)
    student = parameters(model.student)
    moved = {name: 0.5 * teacher[name] + 0.5 * student[name] for name in student}
    expected = run(student, parameters(model.heads), moved, batch, o).targets
    torch.testing.assert_close(model.targets(batch).double(), expected, rtol=1e-3, atol=1e-4)


@each_modality
def test_targets_do_not_depend_on_masks_or_on_the_rest_of_the_batch(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    targets = model.targets(batch)
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    assert torch.equal(model.targets(replace(batch, mask=None)), targets)
    torch.testing.assert_close(model.targets(rows(batch, 1, 2)), targets[1:2], rtol=1e-3, atol=1e-4)
