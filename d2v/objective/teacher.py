"""The teacher: an exponential moving average of the student, data2vec (arXiv:2202.03555), sec. 3.2.

It is a plain submodule: saved, moved and loaded with the model, never trained, always in eval mode, always float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_teacher(student: ModuleT) -> ModuleT:
    """Return a float32 copy of ``student`` without gradients."""
    return copy.deepcopy(student).float().eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, decay: float, is_averaged: Callable[[str], bool] = lambda name: True
) -> None:
    """Move the teacher: teacher <- decay * teacher + (1 - decay) * student.

    Buffers, and parameters that are not averaged, are copied from the student.

    Args:
        teacher: made by :func:`make_teacher` from ``student``: same parameters, same names.
        student: the network being trained.
        decay: in [0, 1]; 1 freezes the teacher.
        is_averaged: whether the parameter with the given name is averaged.

    Raises:
        ValueError: ``decay`` is not in [0, 1], or the two networks have different parameters.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"ema_decay={decay}: must lie in [0, 1]")
    averages, values = dict(teacher.named_parameters()), dict(student.named_parameters())
    if averages.keys() != values.keys():
        raise ValueError(f"teacher and student differ in {sorted(averages.keys() ^ values.keys())}")
    averaged = [name for name in averages if is_averaged(name)]
    copied = [name for name in averages if not is_averaged(name)]
    for names, weight in ((averaged, 1.0 - decay), (copied, 1.0)):  # with weight 1, lerp copies bit for bit
        if names and weight:
            torch._foreach_lerp_([averages[n] for n in names], [values[n].float() for n in names], weight)
    for name, buffer in student.named_buffers():
        teacher.get_buffer(name).copy_(buffer)
