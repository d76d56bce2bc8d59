"""Building of objects from configuration nodes: check of names, check of arguments, call.

A node is a mapping with ``_target_``, the dotted name of a class or function; its other keys are the arguments, which
are nodes or plain values. Nodes of the user (command line, Python) may name anything that can be imported. Nodes of a
file (checkpoint, export, resumed run) may name only classes and functions marked by :func:`d2v.values.buildable`, in
d2v or in a package in ``D2V_TRUST``.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from d2v.arguments import check_arguments, parameters, returned_by
from d2v.errors import naming_keys
from d2v.patterns import check_pattern
from d2v.values import NodeOf, is_buildable, shown, unwrapped

TRUST = "D2V_TRUST"  # packages, separated by commas, with marked classes that files may name

# Parts of d2v with marked classes that a file may name, by place in the configuration: a logger in the place of data,
# for example, could write to a path in the file.
_PARTS = {
    "data": ("data",),
    "mask": ("objective",),
    "ema": ("objective",),
    "schedule": ("objective",),
    "curriculum": ("objective",),
    "optim": ("lit",),
    "callbacks": ("lit",),
    "logger": ("lit",),
    "task": ("tasks",),
    "labels": ("data",),
    "decoder": ("eval",),
}
_MODULES = ("models", "nn")  # anywhere else
_MAX_DEPTH = 40  # of nested nodes


def build(node: Any, given: Mapping[str, Any] | None = None, *, key: str = "", trusted: bool = False) -> Any:
    """Check a configuration node and build its object.

    Args:
        node: plain containers. ``_partial_: true`` gives a partial function that takes more arguments.
        given: arguments that the caller fills in, for every target with a parameter of that name.
        key: key of the node, for messages.
        trusted: True for a node of the user, False for one from a file.

    Raises:
        ValueError: a target is forbidden or cannot be imported, or an argument is invalid.
    """
    check_node(node, key=key, trusted=trusted, given=given or {})
    return _build(node, given or {}, key, trusted)


def check_node(
    node: Any, wanted: Any = Any, *, key: str = "", trusted: bool = False, given: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError unless :func:`build` can build a node; nothing is built.

    Args:
        node: plain containers.
        wanted: class of the object that the node must describe.
        key: key of the node.
        trusted: as for :func:`build`.
        given: as for :func:`build`.
    """
    _check(node, wanted, key, trusted, given or {}, 0)


def check_settings(schema: Any, settings: Mapping[str, Any], key: str = "", *, trusted: bool = False) -> None:
    """Raise ValueError, with key, value and fix, unless a whole configuration is valid for a command.

    Args:
        schema: dataclass with the annotated keys of the command.
        settings: plain containers.
        key: key of the settings; "" at the top.
        trusted: as for :func:`build`.
    """

    def inner(value: Any, wanted: Any, inner_key: str) -> None:
        _check(value, wanted, inner_key, trusted, {}, 0)

    check_arguments(schema, settings, key, inner)


def _check(node: Any, wanted: Any, key: str, trusted: bool, given: Mapping[str, Any], depth: int) -> None:
    wanted, marks = unwrapped(wanted)
    nodes = [mark for mark in marks if isinstance(mark, NodeOf)]
    given = {**given, **{name: None for mark in nodes for name in mark.given}}
    defaults = {name for mark in nodes for name in mark.defaults}
    if depth > _MAX_DEPTH:
        raise ValueError(f"{key}: nested more than {_MAX_DEPTH} deep")
    if isinstance(node, list | tuple):
        for i, value in enumerate(node):
            _check(value, Any, f"{key}[{i}]", trusted, given, depth + 1)
    if not isinstance(node, Mapping):
        return
    for name in node:
        if not isinstance(name, str):
            raise ValueError(f"{key}: the key {name!r} is no text")
        if not trusted and name.endswith("pattern") and isinstance(node[name], str):
            check_file_pattern(node[name], f"{key}.{name}")
    if "_target_" not in node:
        for name, value in node.items():
            _check(value, Any, f"{key}.{name}" if key else name, trusted, given, depth + 1)
        return
    target = _located(node["_target_"], key, trusted)
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise ValueError(f"{key}._partial_={shown(partial)}: give true or false")
    if not partial and not _may_be(returned_by(target), wanted):
        raise ValueError(f"{key}._target_={node['_target_']}: makes no {wanted.__name__}; name a class that does")
    absent = {"_target_", "_partial_"} | {name for name in defaults if node.get(name) is None}
    arguments = {name: value for name, value in node.items() if name not in absent}

    def inner(value: Any, wanted: Any, inner_key: str) -> None:
        _check(value, wanted, inner_key, trusted, given, depth + 1)

    filled = given.keys() & parameters(target).keys()
    check_arguments(target, arguments, key, inner, filled=filled, partial=partial)


def check_file_pattern(pattern: str, key: str) -> None:
    """Raise ValueError, with the key, if a file's regular expression could take exponential time to match."""
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise ValueError(f"{key}: {error}; give it on the command line if it is yours") from error


def _may_be(made: Any, wanted: Any) -> bool:
    """Return False if the result of a call is certainly not of the wanted class."""
    if Any in (made, wanted) or not isinstance(made, type) or not isinstance(wanted, type):
        return True
    return getattr(wanted, "_is_protocol", False) or issubclass(made, wanted)


def _build(node: Any, given: Mapping[str, Any], key: str, trusted: bool) -> Any:
    if isinstance(node, list | tuple):
        return [_build(value, given, key, trusted) for value in node]
    if not isinstance(node, Mapping):
        return node
    inner = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    values = {name: _build(value, given, f"{key}.{name}" if key else name, trusted) for name, value in inner.items()}
    if "_target_" not in node:
        return values
    target = _located(node["_target_"], key, trusted)
    keys = {name: f"{key}.{name}" for name in (*parameters(target), *values) if key and name not in given}
    values |= {name: value for name, value in given.items() if name in parameters(target)}
    if node.get("_partial_", False):
        return functools.partial(target, **values)
    with naming_keys(keys):
        return target(**values)


def _located(target: Any, key: str, trusted: bool) -> Any:
    where = f"{key}._target_" if key else "_target_"
    if not isinstance(target, str):
        raise ValueError(f"{where}={shown(target)}: give the dotted name of a class")
    return part_named(target, where) if trusted else part_of(target, where)


def part_named(target: str, where: str = "_target_") -> Any:
    """Import a class or function by its dotted name, without restrictions; for nodes of the user.

    Raises:
        ValueError: the name cannot be imported, or is no class or function.
    """
    try:
        part = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}={target}: cannot be imported ({error}); correct the name") from error
    if not callable(part):
        raise ValueError(f"{where}={target}: is no class or function")
    return part


def part_of(target: str, where: str = "_target_") -> Any:
    """Return the marked class or function that a file names.

    Args:
        target: dotted name of the class or function.
        where: full key of the name, which decides the allowed parts of d2v.

    Raises:
        ValueError: the target is not marked, or is in a package that is not allowed at this key.
    """
    module, _, name = target.rpartition(".")
    package = module.partition(".")[0]
    trusted = [package.strip() for package in os.environ.get(TRUST, "").split(",") if package.strip()]
    parts = _PARTS.get(where.partition(".")[0].partition("[")[0], _MODULES)
    ours = package == "d2v" and module.partition(".")[2].partition(".")[0] in parts
    part = None
    if all(piece.isidentifier() for piece in target.split(".")) and (ours or package in trusted):
        try:
            part = vars(importlib.import_module(module)).get(name)
        except ImportError:
            part = None
    at_home = getattr(part, "__module__", None) == module and getattr(part, "__qualname__", None) == name
    if part is not None and at_home and is_buildable(part):
        return part
    here = f", in d2v.{' or d2v.'.join(parts)} here" if package == "d2v" else ""
    if package in trusted:
        fix = f"; mark the class in {module} with @d2v.buildable"
    elif package.isidentifier() and package != "d2v":
        fix = f"; if {package} is a package of yours, mark the class with @d2v.buildable and set {TRUST}={package}"
    else:
        fix = ""
    raise ValueError(f"{where}={shown(target)}: refused: a file may name only what is marked as buildable{here}{fix}")


def load_exactly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with exactly the names and shapes of a module.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; the message names them.
    """
    check_fit(module, state)
    module.load_state_dict(dict(state))


def check_fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if weights of a module are missing, unexpected or of another shape; the message names them."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"left over {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        listed = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(f"the weights do not fit the model ({len(problems)} differences):\n  {listed}")
