"""The exponential moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v.objective.teacher import make_teacher, update_teacher


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module.register_buffer("positions", torch.randn(5))
    return module


def test_a_teacher_is_a_frozen_float32_copy_in_eval_mode() -> None:
    student = network().bfloat16().train()
    teacher = make_teacher(student)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    for (name, ours), theirs in zip(teacher.named_parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs.float()), name
        assert ours.data_ptr() != theirs.data_ptr()
    assert student.training
    assert all(p.requires_grad and p.dtype == torch.bfloat16 for p in student.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9998, 1.0])
def test_update_is_the_weighted_mean(decay: float) -> None:
    teacher, student = make_teacher(network(0)), network(1)
    before = {k: v.clone() for k, v in teacher.named_parameters()}
    update_teacher(teacher, student, decay)
    for name, value in student.named_parameters():
        expected = decay * before[name].double() + (1 - decay) * value.detach().double()
        torch.testing.assert_close(teacher.get_parameter(name).double(), expected, rtol=1e-6, atol=1e-7)
        if decay == 1:
            assert torch.equal(teacher.get_parameter(name), before[name])
        if decay == 0:
            assert torch.equal(teacher.get_parameter(name), value)
        assert value.grad is None
        assert teacher.get_parameter(name).grad is None


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_buffers_are_copied(decay: float) -> None:
    teacher, student = make_teacher(network(0)), network(1)
    student(torch.randn(6, 3))  # moves the running statistics and the counter
    update_teacher(teacher, student, decay)
    for name, value in student.named_buffers():
        assert torch.equal(teacher.get_buffer(name), value), name
        assert teacher.get_buffer(name).data_ptr() != value.data_ptr()


def test_a_bfloat16_student_is_averaged_in_float32() -> None:
    student = network(1).bfloat16()
    teacher = make_teacher(network(0))
    before = {k: v.clone() for k, v in teacher.named_parameters()}
    update_teacher(teacher, student, 0.9998)  # a move far below bfloat16's resolution
    for name, value in student.named_parameters():
        ours = teacher.get_parameter(name)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, before[name] + 0.0002 * (value.float() - before[name]))
        if not torch.equal(value.float(), before[name]):
            assert not torch.equal(ours, before[name])


def test_many_small_updates_reach_the_student() -> None:
    teacher, student = make_teacher(network(0)), network(1)
    for _ in range(2000):
        update_teacher(teacher, student, 0.99)
    for name, value in student.named_parameters():
        torch.testing.assert_close(teacher.get_parameter(name), value.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", [-0.1, 1.0001, 2.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    teacher = make_teacher(network())
    with pytest.raises(ValueError, match="ema_decay="):
        update_teacher(teacher, network(1), decay)


def test_networks_that_differ_are_refused() -> None:
    student = network()
    student.add_module("extra", nn.Linear(2, 2))
    teacher = make_teacher(network())
    before = {k: v.clone() for k, v in teacher.named_parameters()}
    with pytest.raises(ValueError, match=r"extra\.bias"):
        update_teacher(teacher, student, 0.5)
    assert all(torch.equal(v, before[k]) for k, v in teacher.named_parameters())


def test_parameters_keep_their_storage() -> None:
    teacher = make_teacher(network(0))
    pointers = [p.data_ptr() for p in teacher.parameters()]
    update_teacher(teacher, network(1), 0.5)
    assert pointers == [p.data_ptr() for p in teacher.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_parameters_that_are_not_averaged_are_copied_whatever_the_decay(decay: float) -> None:
    teacher, student = make_teacher(network(0)), network(1)
    before = {k: v.clone() for k, v in teacher.named_parameters()}
    update_teacher(teacher, student, decay, lambda name: name.startswith("2."))
    for name, value in student.named_parameters():
        if name.startswith("2."):
            torch.testing.assert_close(teacher.get_parameter(name), decay * before[name] + (1 - decay) * value)
        else:
            assert torch.equal(teacher.get_parameter(name), value), name
