"""Summary of a data set before it is used: size, location, classes, and files that were left out.

A source may have an attribute ``contents``; ``describe`` of every data set prints it.
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
    """Location of a source, and files there that are not among its samples.

    Attributes:
        place: the folder, or the data set and its split.
        unit: noun for its samples, in the plural.
        left_out: numbers of left-out files, by kind: an ending such as ".heic", or "hidden".
        notes: decisions that a user should know, one short sentence each.
    """

    place: str = ""
    unit: str = "samples"
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def distinct(sources: Mapping[str, T | None]) -> dict[str, T]:
    """Return sources by name, without missing ones; a source with several names appears under the first."""
    kept: dict[str, T] = {}
    for name, source in sources.items():
        if source is not None and not any(source is other for other in kept.values()):
            kept[name] = source
    return kept


def describe_sources(sources: Mapping[str, Any]) -> list[str]:
    """Return the lines of a summary: one for each source, and an indented one for each of its notes.

    Args:
        sources: sources by name, such as "train" and "val"; None for missing ones. A source with two names is described
            once.
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
    """Escape line ends and control characters, so that any names fit on one line of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def in_words(counts: Mapping[str, int]) -> str:
    """Format numbers by kind, highest first: "35 .heic, 2 .txt, 4 others"."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {kind}" for kind, count in order[:_NAMED_KINDS]]
    rest = sum(count for _, count in order[_NAMED_KINDS:])
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


def first_of(names: Iterable[str], count: int = _NAMED_CLASSES) -> str:
    """Join the first names of a list, with dots if there are more."""
    known = list(names)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")


def _left_out(counts: Mapping[str, int]) -> str:
    """Format left-out files: other endings together, then the rest."""
    endings = {kind: count for kind, count in counts.items() if kind.startswith(".") or kind == NO_ENDING}
    others = {kind: count for kind, count in counts.items() if kind not in endings}
    words = [f"{sum(endings.values()):,} with other endings ({in_words(endings)})"] if endings else []
    return ", ".join([*words, in_words(others)] if others else words)


def _size(source: Any, contents: Contents) -> str:
    place = f" from {contents.place}" if contents.place else ""
    return f"{len(source):,} {contents.unit}{place}" if hasattr(source, "__len__") else f"stream{place}"


def _classes(names: tuple[str, ...] | None) -> str:
    return "" if names is None else f"; {len(names)} classes: {first_of(names)}"
