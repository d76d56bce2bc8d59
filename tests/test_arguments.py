"""Values are checked against annotations: types, ranges, finite numbers, choices, lists, unknown and missing names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict, Unpack

import pytest

from d2v.arguments import check, check_arguments, parameters
from d2v.values import (
    ConvLayers,
    Count,
    CropScale,
    Fraction,
    Name,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Rate,
)

NAN, INF = float("nan"), float("inf")

GOOD: list[tuple[Any, Any]] = [
    (3, int), (3, float), (2.5, float), (True, bool), ("a", str), (None, int | None), (0, Count), (1.0, Fraction),
    (0.0, Fraction), (0.999, Rate), ([0.2, 1.0], CropScale), ([[8, 3, 2]], ConvLayers), ([], Sequence[float]),
    ("auto", Literal["auto"] | PositiveInt), (4, Literal["auto"] | PositiveInt), ({"a": 1.0}, Mapping[str, float]),
    ("x", PathStr), (["a", "b"], Sequence[str] | str), ("a", Sequence[str] | str), ((1, 2), Sequence[int]),
    (10**30, float),
]  # fmt: skip
BAD: list[tuple[Any, Any, str]] = [
    (True, int, "k=true: give a whole number"),
    (1.5, int, "k=1.5: give a whole number"),
    ("3", float, "k=3: give a number"),
    (NAN, float, "k=nan: give a number, finite"),
    (INF, PositiveFloat, "k=inf: give a number above 0, finite"),
    (-INF, float, "finite"),
    (-1, Count, "k=-1: give a whole number from 0 to 1,000,000,000"),
    (0.0, PositiveFloat, "k=0.0: give a number above 0"),
    (1.0, Rate, "k=1.0: give a number of at least 0 and below 1"),
    (1.1, Fraction, "k=1.1: give a number from 0 to 1"),
    (1, bool, "k=1: give true or false"),
    ("maybe", bool, "k=maybe: give true or false"),
    (None, int, "k=null: give a whole number"),
    ("", PathStr, "k=: give a path"),
    (" ", Name, "k= : give a text"),
    ("a\0b", str, "give a text"),
    (3, str, "k=3: give a text"),
    ("autoo", Literal["auto", "none"], "k=autoo: choose one of auto, none; did you mean auto?"),
    (0, Literal["auto"] | PositiveInt, "k=0: give auto or a whole number from 1"),
    (0.5, Sequence[float], "k=0.5: give a list, each a number"),
    ([0.1, NAN], Sequence[float], r"k\[1\]=nan: give a number, finite"),
    ([0.1, NAN], Sequence[float] | None, r"k\[1\]=nan: give a number, finite"),
    ([0.2], CropScale, r"k=\[0.2\]: give a list of 2"),
    ([0.0, 1.0], CropScale, r"k\[0\]=0.0: give a number above 0 and at most 1"),
    ([[8, 3]], ConvLayers, r"k\[0\]=\[8, 3\]: give a list of 3"),
    ([], ConvLayers, "of 1 to 64 elements"),
    ({"a": "b"}, Mapping[str, float], "k.a=b: give a number"),
    ({"_target_": "a.b"}, float, "give a number"),
    ({"_target_": "a.b"}, str, "give a text"),
]


@pytest.mark.parametrize(("value", "annotation"), GOOD, ids=str)
def test_what_fits_passes(value: Any, annotation: Any) -> None:
    check(value, annotation, "k")


@pytest.mark.parametrize(("value", "annotation", "message"), BAD, ids=str)
def test_what_does_not_fit_is_named_with_the_fix(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(value, annotation, "k")


def test_nesting_is_bounded() -> None:
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    annotation: Any = Any
    for _ in range(60):
        annotation = Sequence[annotation]
    with pytest.raises(ValueError, match=r"nested more than"):
        check(deep, annotation, "k")


@dataclass
class _Inner:
    depth: PositiveInt
    drop: Rate = 0.0


def _call(a: PositiveInt, b: float = 1.0, inner: _Inner | None = None) -> None:
    """A target."""


def _arguments(**given: Any) -> None:
    check_arguments(_call, given, "model", lambda value, wanted, key: None, filled={"run_dir"})


def test_arguments_are_checked_by_name() -> None:
    _arguments(a=1, inner={"depth": 2})
    with pytest.raises(ValueError, match=r"model.a: a value is missing; give model.a=VALUE"):
        _arguments(b=2.0)
    with pytest.raises(ValueError, match=r"unknown key model.inner.dept: did you mean model.inner.depth\?"):
        _arguments(a=1, inner={"dept": 2})
    with pytest.raises(ValueError, match=r"model.inner.drop=1: give a number of at least 0 and below 1"):
        _arguments(a=1, inner={"depth": 2, "drop": 1})
    with pytest.raises(
        ValueError,
        match=r"model.colour=2: _call has no such setting: leave it out with '~model.colour' .it has a, b, inner",
    ):
        _arguments(a=1, colour=2)
    with pytest.raises(ValueError, match=r"model.run_dir=/tmp/x: is filled in by d2v; leave it out"):
        _arguments(a=1, run_dir="/tmp/x")


class _Options(TypedDict, total=False):
    width: Required[PositiveInt]
    drop: Rate


class _More(_Options, total=False):
    root: PathStr


def _factory(name: str = "a", **options: Unpack[_More]) -> None:
    """A target with options."""


def test_options_are_parameters() -> None:
    known = parameters(_factory)
    assert list(known) == ["name", "width", "drop", "root"]
    assert [known[name].annotation for name in ("width", "drop", "root")] == [PositiveInt, Rate, PathStr]

    def given(filled: tuple[str, ...] = (), **options: Any) -> None:
        check_arguments(_factory, options, "data", lambda value, wanted, key: None, filled=filled)

    given(width=1)
    given(width=1, drop=0.5, root="x")
    given(filled=("width",))
    with pytest.raises(ValueError, match=r"data.width: a value is missing; give data.width=VALUE"):
        given(drop=0.5)
    with pytest.raises(ValueError, match=r"data.width=0: give a whole number from 1"):
        given(width=0)
    with pytest.raises(ValueError, match=r"unknown key data.dropp: did you mean data.drop\?"):
        given(width=1, dropp=0.5)
