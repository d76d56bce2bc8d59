"""Inputs of an export: their form, and nothing of the folders that the data lay in.

An export is meant to be published. Paths, names and patterns tell of their owner and of his machine; a run's own folder
keeps them, since resuming needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def public_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs without what is private: a text that is no JSON content becomes None.

    Args:
        inputs: of a checkpoint: numbers, flags, lists of numbers, and the content of a tokenizer.
    """
    return {key: value if _is_public(value) else None for key, value in inputs.items()}


def _is_public(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("{")
    if isinstance(value, list | tuple):
        return all(not isinstance(element, str) and _is_public(element) for element in value)
    return value is None or isinstance(value, bool | int | float)
