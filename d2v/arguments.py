"""Check of values against annotations, and of arguments against signatures.

Values from the command line, from Python and from files are all checked before anything is built. Numbers are finite,
flags are booleans, paths are not empty. Types and ranges of annotations are those of :mod:`d2v.values`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, Required, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

from d2v.values import IsPath, Length, NodeOf, Range, describe, shown, unwrapped

Key = str  # key of a value, such as "model.encoder.depth"
_MAX_DEPTH = 40  # of nested values


def _any_node(value: Any, wanted: Any, key: Key) -> None:
    """Accept every node."""


def check(
    value: Any,
    annotation: Any,
    key: Key,
    check_node: Callable[[Any, Any, Key], None] = _any_node,
    depth: int = 0,
) -> None:
    """Raise ValueError, with key, value and fix, unless a plain value matches an annotation.

    Args:
        value: None, a bool, number or string, or a list or mapping of such.
        annotation: annotation of a parameter, including extras.
        key: key of the value.
        check_node: checks a mapping that describes an object against the class to build.
        depth: nesting depth so far.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"{key}: nested more than {_MAX_DEPTH} deep; flatten it")
    problem = _problem(value, annotation, key, check_node, depth)
    if problem is not None:
        wanted = describe(annotation)
        verb = "choose" if wanted.startswith("one of ") else "give"
        raise ValueError(f"{key}={shown(value)}: {verb} {wanted}{problem}")


def _problem(value: Any, annotation: Any, key: Key, check_node: Any, depth: int) -> str | None:
    """Return None if the value fits, else a (possibly empty) addition to the message; elements raise by themselves."""
    base, extras = unwrapped(annotation)
    if base is Any or base is inspect.Parameter.empty or isinstance(base, TypeVar):
        if isinstance(value, Mapping | list | tuple):
            check_node(value, annotation, key)
            return None
        is_node = any(isinstance(extra, NodeOf) for extra in extras)
        return "" if is_node and value is not None else None
    if base is None or base is type(None):
        return None if value is None else ""
    origin, args = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return _union_problem(value, args, key, check_node, depth)
    if origin is Literal:
        return None if any(value == a and type(value) is type(a) for a in args) else _close(value, args)
    if base is bool:
        return None if isinstance(value, bool) else ""
    if base in (int, float):
        return _number_problem(value, base, extras)
    if base is str:
        if not isinstance(value, str) or "\0" in value:
            return ""
        return None if value.strip() or not any(isinstance(extra, IsPath | Length) for extra in extras) else ""
    if origin is tuple and args and args[-1] is not Ellipsis:
        if not _is_list(value) or len(value) != len(args):
            return ""
        for i, (element, of) in enumerate(zip(value, args, strict=True)):
            check(element, of, f"{key}[{i}]", check_node, depth + 1)
        return None
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or "_target_" in value:
            return ""
        for name, element in value.items():
            check(element, args[1], f"{key}.{name}", check_node, depth + 1)
        return None
    if base in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if not _is_list(value):
            return ""
        bounds = next((e for e in extras if isinstance(e, Length)), Length(0))
        if not bounds.low <= len(value) <= bounds.high:
            return f" (of {bounds.low} to {bounds.high} elements)"
        for i, element in enumerate(value):
            check(element, args[0] if args else Any, f"{key}[{i}]", check_node, depth + 1)
        return None
    return _object_problem(value, base, key, check_node, depth)


def _object_problem(value: Any, base: Any, key: Key, check_node: Any, depth: int) -> str | None:
    if not isinstance(value, Mapping):
        return ""
    if "_target_" in value:
        check_node(value, base, key)
        return None
    if is_dataclass(base):
        check_arguments(base, value, key, check_node, depth=depth + 1)
        return None
    return ""


def _union_problem(value: Any, members: Sequence[Any], key: Key, check_node: Any, depth: int) -> str | None:
    if value is None:
        return None if type(None) in members else ""
    inner = [member for member in members if member is not type(None)]
    fitting = [member for member in inner if _takes(value, member)] or inner
    if len(fitting) == 1 and (_is_list(value) or isinstance(value, Mapping)):
        return _problem(value, fitting[0], key, check_node, depth)  # names the invalid element
    problems = []
    for member in inner:
        try:
            problems.append(_problem(value, member, key, check_node, depth))
        except ValueError:
            problems.append("")
    return None if None in problems else next((p for p in problems if p), "")


def _takes(value: Any, annotation: Any) -> bool:
    """Return whether an annotation accepts values of this shape: lists, mappings or scalars."""
    base, _ = unwrapped(annotation)
    origin = get_origin(base) or base
    is_class = isinstance(origin, type)
    if _is_list(value):
        return is_class and issubclass(origin, Sequence) and origin is not str
    if isinstance(value, Mapping):
        return not (is_class and issubclass(origin, Sequence | int | float | bool | str | type(None)))
    return True


def _number_problem(value: Any, kind: type, extras: Iterable[Any]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return ""
    if kind is float and not math.isfinite(value):
        return ", finite"
    bounds = next((extra for extra in extras if isinstance(extra, Range)), Range())
    return None if bounds.holds(value) else ""


def check_arguments(
    target: Any,
    arguments: Mapping[str, Any],
    key: Key,
    check_node: Callable[[Any, Any, Key], None],
    filled: Iterable[str] = (),
    partial: bool = False,
    depth: int = 0,
) -> None:
    """Raise ValueError, with key, value and fix, unless arguments match the signature of a class or function.

    Args:
        target: class or function; its ``**kwargs`` accept any plain values.
        arguments: plain values and nodes, by name.
        key: key of the mapping of arguments; "" at the top.
        check_node: as in :func:`check`.
        filled: names that the caller fills in; the arguments must not set them.
        partial: allow missing arguments.
        depth: nesting depth so far.
    """
    known = parameters(target)
    takes_more = known.pop("**", None)
    here = f"{key}." if key else ""
    for name, value in arguments.items():
        if name in filled:
            raise ValueError(f"{here}{name}={shown(value)}: is filled in by d2v; leave it out")
        if name in known:
            check(value, known[name].annotation, f"{here}{name}", check_node, depth + 1)
        elif takes_more is None:
            raise ValueError(_unknown(f"{here}{name}", name, value, known, target, key))
    lacking = [
        name
        for name, parameter in known.items()
        if parameter.default is inspect.Parameter.empty and name not in arguments and name not in filled
    ]
    if lacking and not partial:
        raise ValueError(f"{here}{lacking[0]}: a value is missing; give {here}{lacking[0]}=VALUE")


def _unknown(full: Key, name: str, value: Any, known: Mapping[str, Any], target: Any, key: Key) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown key {full}: did you mean {full.removesuffix(name)}{close[0]}?"
    what = getattr(target, "__name__", str(target))
    fix = f"leave it out with '~{full}'" if key else "remove it"
    return f"{full}={shown(value)}: {what} has no such setting: {fix} (it has {', '.join(known) or 'none'})"


@cache
def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    constructor = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {"**": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    try:
        hints = get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations that cannot be resolved at run time
        hints = {}
    by_name: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if get_origin(hints.get(name)) is Unpack:
            by_name |= _options(*get_args(hints[name]))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            by_name["**"] = parameter
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            by_name[name] = parameter.replace(annotation=hints.get(name, inspect.Parameter.empty))
    return by_name


def _options(options: Any) -> dict[str, inspect.Parameter]:
    """Return the keys of a TypedDict as parameters; the default of those that may be left out stands elsewhere."""
    by_name = {}
    for name, annotation in get_type_hints(options, include_extras=True).items():
        required = get_origin(annotation) is Required
        annotation = get_args(annotation)[0] if required else annotation
        default = inspect.Parameter.empty if required else ...
        by_name[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    return by_name


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Parameters of a class or function by name, with resolved annotations.

    ``**options: Unpack[SomeTypedDict]`` counts as one parameter a key; ``**`` stands for any other ``**kwargs``.
    """
    return dict(_parameters(target))


def returned_by(target: Any) -> Any:
    """Return the class of objects that ``target`` returns, or Any if that is unknown."""
    if isinstance(target, type):
        return target
    try:
        return get_type_hints(target).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _close(value: Any, choices: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return f"; did you mean {close[0]}?" if close else ""
