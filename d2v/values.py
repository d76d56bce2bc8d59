"""Types and ranges of configured values: annotations of parameters, and the check of values against them.

Constructors annotate their parameters (``lr: PositiveFloat``). Values from the command line, from Python and from files
are all checked against these annotations before anything is built. Numbers are finite, flags are booleans, paths are
not empty.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Required, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

Key = str  # key of a value, such as "model.encoder.depth"
T = TypeVar("T")

_MARK = "__buildable__"
_MAX_DEPTH = 40  # of nested values


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low: lowest value.
        high: highest value.
        above: True excludes ``low`` itself.
        below: True excludes ``high`` itself.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a number lies within the bounds."""
        if not (self.low <= value <= self.high):  # false for NaN
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    def __str__(self) -> str:
        lowest, highest = (f"{int(x):,}" if float(x).is_integer() else f"{x:g}" for x in (self.low, self.high))
        low = f"above {lowest}" if self.above else f"of at least {lowest}"
        high = f"below {highest}" if self.below else f"at most {highest}"
        if math.isinf(self.low):
            return "" if math.isinf(self.high) else high
        if math.isinf(self.high):
            return low
        return f"{low} and {high}" if self.above or self.below else f"from {lowest} to {highest}"


@dataclass(frozen=True)
class Length:
    """Bounds of the length of a list or string."""

    low: int = 1
    high: int = 10_000


@dataclass(frozen=True)
class IsPath:
    """Annotation of a path: not empty, and stored as an absolute path in the record of a run."""


@dataclass(frozen=True)
class NodeOf:
    """Annotation of a mapping with ``_target_``, or null.

    Attributes:
        given: arguments that d2v fills in when it builds the object; a configuration must not set them.
        defaults: arguments that d2v fills in if they are null or missing.
    """

    given: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()


FiniteFloat = float
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, above=True)]
OpenFraction = Annotated[float, Range(0, 1, above=True, below=True)]
SignedFraction = Annotated[float, Range(-1, 1)]
Rate = Annotated[float, Range(0, 1, below=True)]  # of what is dropped: not everything
Beta = Annotated[float, Range(0, 1, below=True)]  # of an average that forgets
Epsilon = Annotated[float, Range(0, 1, above=True)]
Ratio = Annotated[float, Range(0, 64, above=True)]
Seconds = Annotated[float, Range(0, 86_400, above=True)]

Count = Annotated[int, Range(0, 10**9)]
PositiveInt = Annotated[int, Range(1, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Steps = Annotated[int, Range(0, 10**9)]
PositiveSteps = Annotated[int, Range(1, 10**9)]
Width = Annotated[int, Range(1, 2**17)]
Depth = Annotated[int, Range(0, 1024)]
PositiveDepth = Annotated[int, Range(1, 1024)]
NumHeads = Annotated[int, Range(1, 1024)]
NumMasks = Annotated[int, Range(1, 4096)]
NumPrefixTokens = Annotated[int, Range(0, 1024)]
KernelSize = Annotated[int, Range(1, 1023)]
VocabSize = Annotated[int, Range(1, 10**7)]
BlockSize = Annotated[int, Range(4, 10**7)]
WindowSize = Annotated[int, Range(2, 10**6)]
BeamSize = Annotated[int, Range(1, 10**5)]
ImageSize = Annotated[int, Range(1, 2**15)]  # pixels
Channels = Annotated[int, Range(1, 4096)]
BitDepth = Annotated[int, Range(8, 16)]
SampleRate = Annotated[int, Range(1, 10**7)]  # Hz

CropScale = tuple[PositiveFraction, PositiveFraction]
ConvLayers = Annotated[Sequence[tuple[Width, KernelSize, KernelSize]], Length(1, 64)]  # channels, kernel size, stride
PathStr = Annotated[str, IsPath()]
Name = Annotated[str, Length(1)]  # not empty

Node = Annotated[Any, NodeOf()]


def buildable(target: T) -> T:
    """Allow files (checkpoints, exports, runs) to name a class or function in ``_target_``.

    Mark only pure constructors: they must not read or write files, nor import what their arguments name. Data set
    factories are the exception: they read the data that their arguments name.
    """
    setattr(target, _MARK, True)
    return target


def is_buildable(target: Any) -> bool:
    """Return whether the target itself is marked; subclasses do not inherit the mark."""
    return vars(target).get(_MARK, False) is True if hasattr(target, "__dict__") else False


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


def unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation without its extras, and the extras."""
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        return base, tuple(extras)
    return annotation, ()


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
    found: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if get_origin(hints.get(name)) is Unpack:
            found |= _options(*get_args(hints[name]))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found["**"] = parameter
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = parameter.replace(annotation=hints.get(name, inspect.Parameter.empty))
    return found


def _options(options: Any) -> dict[str, inspect.Parameter]:
    """Return the keys of a TypedDict as parameters; the default of those that may be left out stands elsewhere."""
    found = {}
    for name, annotation in get_type_hints(options, include_extras=True).items():
        required = get_origin(annotation) is Required
        annotation = get_args(annotation)[0] if required else annotation
        default = inspect.Parameter.empty if required else ...
        found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    return found


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


def describe(annotation: Any) -> str:
    """Describe the values that an annotation accepts: "a number from 0 to 1 or null"."""
    base, extras = unwrapped(annotation)
    origin, args = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(arg) for arg in sorted(args, key=lambda a: a is type(None))))
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(shown, args))
    if base in (int, float):
        bounds = str(next((extra for extra in extras if isinstance(extra, Range)), ""))
        return f"{'a whole number' if base is int else 'a number'} {bounds}".rstrip()
    if base is str:
        return "a path" if any(isinstance(extra, IsPath) for extra in extras) else "a text"
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: {', '.join(describe(arg) for arg in args)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of names to {describe(args[1])}"
    if base in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list, each {describe(args[0])}" if args else "a list"
    words = {bool: "true or false", type(None): "null", None: "null", Any: "a mapping with _target_"}
    return words.get(base, f"a mapping that describes a {getattr(base, '__name__', 'value')}")


def shown(value: Any) -> str:
    """Return a value as typed on the command line, shortened."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain_type(annotation: Any) -> Any:
    """Return an annotation without its extras and without null."""
    base, _ = unwrapped(annotation)
    if get_origin(base) in (Union, types.UnionType):
        inner = [arg for arg in get_args(base) if arg is not type(None)]
        return plain_type(inner[0]) if len(inner) == 1 else base
    return base


def is_path(annotation: Any) -> bool:
    """Return whether a parameter is a path or a list of paths, optional or not."""
    base, extras = unwrapped(annotation)
    return any(isinstance(extra, IsPath) for extra in extras) or any(
        is_path(arg) for arg in get_args(base) if get_origin(base) is not Literal and arg is not Ellipsis
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _close(value: Any, choices: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return f"; did you mean {close[0]}?" if close else ""
