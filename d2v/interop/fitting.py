"""Building of models from files, only if the weights in the file match.

A short configuration can describe more layers than fit into any memory, but weights take up space in the file. So a
model is first built on PyTorch's meta device, where parameters have shapes but no content, and building stops as soon
as it has many more parameters than the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from d2v.bounds import TooMuch
from d2v.interop.build import build, check_fit, check_node, load_exactly

_SPARE = 1000  # tolerated excess of parameters, so that missing ones can be named
_MAX_BUFFERS = 1 << 28  # numbers that are computed from the configuration and are in no file, such as indices


def build_fitting(node: Any, state: Mapping[str, Tensor]) -> Any:
    """Build the module that a node from a file describes, with its weights.

    Args:
        node: plain containers, as for :func:`d2v.interop.build.build`.
        state: complete state dict of the module.

    Raises:
        ValueError: weights are missing, unexpected, of another shape, or too few for the module.
    """
    check_fit(sketch(node, state), state)
    module = build(node)
    load_exactly(module, state)
    return module


def sketch(node: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """Build the module on the meta device, without the content of its parameters.

    Args:
        node: plain containers.
        state: weights, under any names.

    Raises:
        ValueError: the module is far larger than its weights.
    """
    # Constructors of packages that the user trusts may need numbers.
    device = "cpu" if _names_others(node) else "meta"
    check_node(node, nn.Module)  # other classes that a file may name are not built here
    try:
        with torch.device(device), _at_most(4 * len(state) + _SPARE):
            module = build(node)
    except (ArithmeticError, AttributeError, KeyError, IndexError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(f"its configuration describes no model that can be built ({error})") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"a {type(module).__name__} is described where a model should be")
    return module


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raise TooMuch within the block once modules have more parameters, or more computed numbers, than allowed."""
    left = {"parameters": count, "buffers": _MAX_BUFFERS}

    def take(kind: str, amount: int) -> None:
        left[kind] -= amount
        if left[kind] < 0:
            raise TooMuch("the weights do not fit the model: its configuration describes a far larger one")

    def on_parameter(module: nn.Module, name: str, value: Tensor | None) -> None:
        take("parameters", 1)

    def on_buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
        take("buffers", 0 if value is None else value.numel())

    handles = (
        register_module_parameter_registration_hook(on_parameter),
        register_module_buffer_registration_hook(on_buffer),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _names_others(node: Any) -> bool:
    """Return whether a node names classes of other packages than d2v."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        return (target is not None and not str(target).startswith("d2v.")) or any(map(_names_others, node.values()))
    return isinstance(node, list | tuple) and any(map(_names_others, node))
