"""Types and ranges of configured values, as annotations; their descriptions; the mark ``buildable``.

Constructors annotate their parameters (``lr: PositiveFloat``); :mod:`d2v.arguments` checks values against that.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

_MARK = "__buildable__"


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
NumFrames = Annotated[int, Range(1, 10**6)]  # of a spectrogram
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


def unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation without its extras, and the extras."""
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        return base, tuple(extras)
    return annotation, ()


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
