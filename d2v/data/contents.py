"""Summary of a data set before it is used: how much, from where, which classes, and files that were left out.

A source may have an attribute ``contents``; ``describe`` of every kind of data puts them into words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

NO_ENDING = "without ending"  # among the kinds of files that are left out
_NAMED_CLASSES, _NAMED_KINDS = 5, 6
_INDENT = " " * 10


@dataclass(frozen=True)
class Contents:
    """Origin of a source, and everything that is there but not among its samples.

    Attributes:
        place: the folder, or the data set and its split.
        unit: of its samples, in the plural.
        left_out: numbers of left-out files, by kind: an ending such as ".heic", or "hidden".
        notes: decisions that a user should know of, one short sentence each.
    """

    place: str = ""
    unit: str = "samples"
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def distinct(sources: Mapping[str, T | None]) -> dict[str, T]:
    """Sources by name, without those that the data lack, and under its first name alone what has several."""
    found: dict[str, T] = {}
    for name, source in sources.items():
        if source is not None and not any(source is other for other in found.values()):
            found[name] = source
    return found


def describe_sources(sources: Mapping[str, Any]) -> list[str]:
    """Lines of a summary: a line a source, and an indented line for each of its notes.

    Args:
        sources: by name, such as "train" and "val"; None for those that the data lack. A source that is named twice is
            described once.
    """
    lines: list[str] = []
    for name, source in distinct(sources).items():
        contents = getattr(source, "contents", None) or Contents()
        lines.append(f"{name:<9} {_size(source, contents)}{_classes(getattr(source, 'class_names', None))}")
        if contents.left_out:
            lines.append(f"{_INDENT}left out: {_left_out(contents.left_out)}")
        lines += [_INDENT + note for note in contents.notes]
    return [visible(line) for line in lines]


def visible(line: str) -> str:
    """One line, whatever names are in it: line ends and what steers a terminal are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def in_words(counts: Mapping[str, int]) -> str:
    """Numbers by kind, highest first: "35 .heic, 2 .txt, 4 others"."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {kind}" for kind, count in order[:_NAMED_KINDS]]
    rest = sum(count for _, count in order[_NAMED_KINDS:])
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


def first_of(names: Iterable[str], count: int = _NAMED_CLASSES) -> str:
    """The first names of a list, and dots if there are more."""
    known = list(names)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")


def _left_out(counts: Mapping[str, int]) -> str:
    """Files with other endings together, then the rest."""
    endings = {kind: count for kind, count in counts.items() if kind.startswith(".") or kind == NO_ENDING}
    others = {kind: count for kind, count in counts.items() if kind not in endings}
    words = [f"{sum(endings.values()):,} with other endings ({in_words(endings)})"] if endings else []
    return ", ".join([*words, in_words(others)] if others else words)


def _size(source: Any, contents: Contents) -> str:
    place = f" from {contents.place}" if contents.place else ""
    return f"{len(source):,} {contents.unit}{place}" if hasattr(source, "__len__") else f"stream{place}"


def _classes(names: tuple[str, ...] | None) -> str:
    return "" if names is None else f"; {len(names)} classes: {first_of(names)}"
