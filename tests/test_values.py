"""Ranges in words, paths by their annotation, the mark of what files may name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from d2v import values
from d2v.values import Length, PathStr, Range, describe, is_path

NAN = float("nan")


def test_ranges_say_what_they_hold() -> None:
    assert [str(r) for r in (Range(1), Range(0, above=True), Range(0, 1), Range(0, 1, below=True), Range(high=3))] == [
        "of at least 1", "above 0", "from 0 to 1", "of at least 0 and below 1", "at most 3",
    ]  # fmt: skip
    assert not Range(0, 1).holds(NAN)
    assert describe(Literal["a"] | None) == "a or null"
    assert Length(2, 3).high == 3


def test_paths_are_known_by_their_annotation() -> None:
    assert is_path(PathStr)
    assert is_path(PathStr | None)
    assert is_path(Sequence[PathStr])
    assert not is_path(str | None)
    assert not is_path(Literal["auto"])


def test_a_mark_is_not_inherited() -> None:
    @values.buildable
    class Parent:
        pass

    class Child(Parent):
        pass

    assert values.is_buildable(Parent)
    assert not values.is_buildable(Child)
    assert not values.is_buildable(3)
