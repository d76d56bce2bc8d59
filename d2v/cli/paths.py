"""Absolute paths in a configuration, so that the record of a run is valid from any folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from d2v.arguments import parameters
from d2v.interop.build import part_named
from d2v.values import is_path

# These may be names on the Hugging Face Hub, or words such as resume=auto, unless such a file or folder exists.
_MAYBE_NAMES = ("checkpoint", "init_from", "path", "resume")


def absolute(settings: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """Return plain settings with relative paths made absolute from the current folder.

    Args:
        settings: settings of a command, or arguments of a node.
        schema: class or function with annotations of the paths.
    """
    known = parameters(schema)
    return {
        name: _absolute(value, name, name in known and is_path(known[name].annotation))
        for name, value in settings.items()
    }


def _absolute(value: Any, name: str, path: bool) -> Any:
    if isinstance(value, str) and value and (path or name == "path") and value != "???":
        return _from_here(value, name)
    if isinstance(value, list):
        return [_absolute(inner, name, path) for inner in value]
    if not isinstance(value, Mapping):
        return value
    try:
        schema = part_named(str(value["_target_"])) if "_target_" in value else None
    except ValueError:  # reported when it is built
        schema = None
    if schema is not None:
        return absolute(value, schema)
    return {key: _absolute(inner, key, False) for key, inner in value.items()}


def _from_here(value: str, name: str) -> str:
    if value.lstrip().startswith("{"):  # a tokenizer itself
        return value
    path = os.path.expanduser(value)
    if name in _MAYBE_NAMES and not os.path.lexists(path):
        return value
    return os.path.abspath(path)
