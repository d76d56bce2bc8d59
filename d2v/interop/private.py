"""Data configuration of an export: the form of inputs, and nothing of the folders they lay in.

An export is meant to be published. Folders, table and column names, patterns and names of data sets tell of their owner
and of his machine; a run's own folder keeps them, since resuming needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INPUT_TEXTS = ("tokenizer",)  # whose content is part of the model


def public_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data's configuration without what is private.

    Numbers, flags and lists of numbers stay, and the content of a tokenizer. Where nothing else was given (the samples
    that ship), ``_target_`` stays too, and the data can be built again; otherwise whoever uses the export names data.

    Args:
        data: of a run: plain containers.
    """
    kept = {key: value for key, value in data.items() if key != "_target_" and _is_public(key, value)}
    for key in _INPUT_TEXTS:
        if key in data:
            kept.setdefault(key, None)  # of a tokenizer, the path it was read from
    whole = all(key in kept and kept[key] == value for key, value in data.items() if key != "_target_")
    return {"_target_": data["_target_"], **kept} if whole and "_target_" in data else kept


def _is_public(key: str, value: Any) -> bool:
    if isinstance(value, str):
        return key in _INPUT_TEXTS and value.lstrip().startswith("{")
    if isinstance(value, list | tuple):
        return all(not isinstance(element, str) and _is_public("", element) for element in value)
    return value is None or isinstance(value, bool | int | float)
