"""Removal of private values from exports, which are meant to be published.

Paths, names and patterns reveal the owner and the machine. A run's own folder keeps them, because resuming needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def public_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs without private values: strings that are not JSON content become None.

    Args:
        inputs: inputs of a checkpoint: numbers, flags, lists of numbers, and the content of a tokenizer.
    """
    return {key: value if _is_public(value) else None for key, value in inputs.items()}


def _is_public(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("{")
    if isinstance(value, list | tuple):
        return all(not isinstance(element, str) and _is_public(element) for element in value)
    return value is None or isinstance(value, bool | int | float)
