"""Small files that describe what fills a memory, a stack or an hour are refused before they do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v import bounds
from d2v.bounds import TooMuch, check_plain, parse_json, parse_yaml, read_json, read_text, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "aliases": (LAUGHS, "aliases"),
    "an alias of itself": ("a: &a [*a]", "aliases"),
    "lists in lists": ("[" * 5000 + "]" * 5000, "nest"),
    "mappings in mappings": ("{a: " * 200 + "1" + "}" * 200, "deep"),
    "blocks in blocks": ("\n".join("  " * i + "a:" for i in range(200)), "deep"),
    "many values": ("[" + "1," * 300_000 + "]", "values"),
    "a number of a million digits": ("a: " + "1" * 1_000_000, "digits"),
    "a number of base 60": ("a: " + "1:" * 500_000 + "1", "digits"),
    "a number that Python refuses": ("a: " + "9" * 5000, "digits"),
    "code": ("a: !!python/object/apply:os.system ['true']", "python"),
    "a day that is none": ("a: 2001-13-45", "month"),
    "a time": ("a: 2001-12-14", "date"),
    "bytes": ("a: !!binary aGVsbG8=", "bytes"),
    "a key that is a list": ("? [1, 2]\n: 3", "unhashable"),
    "not YAML": ("a: [", "expected"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_describes_too_much_is_refused_at_once(name: str) -> None:
    text, words = YAML[name]
    start = time.process_time()
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)
    assert time.process_time() - start < 10


def test_yaml_in_use_is_read() -> None:
    text = 'a: {b: [1, -2.5, 1e-3, true, null, x], 3: \'{"c": "' + "1" * 5000 + "\"}'}\n"
    assert parse_yaml(text)["a"]["b"] == [1, -2.5, "1e-3", True, None, "x"]
    assert parse_yaml("") is None


JSON = {
    "lists in lists": ("[" * 100_000 + "]" * 100_000, "deep"),
    "lists in lists, fewer": ("[" * 100 + "]" * 100, "deep"),
    "objects in objects": ('{"a":' * 100 + "1" + "}" * 100, "deep"),
    "a number of many digits": ("1" * 10_000, "digits"),
    "not JSON": ("{", "Expecting"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_describes_too_much_is_refused(name: str) -> None:
    text, words = JSON[name]
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_many_values_in_json_are_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_VALUES", 1000)
    monkeypatch.setattr(bounds.json, "loads", lambda text: pytest.fail("it was parsed"))
    with pytest.raises(TooMuch, match="values"):
        parse_json("[" + "[]," * 1001 + "[]]")


def test_shared_parts_count_as_often_as_they_are_met() -> None:
    laughs: list[object] = ["x"]
    for _ in range(40):
        laughs = [laughs, laughs]
    with pytest.raises(TooMuch, match="values"):
        check_plain(laughs, max_values=100_000)
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(TooMuch, match="deep"):
        check_plain(circle)


def test_only_plain_values_pass() -> None:
    check_plain({"a": [1, 2.5, None, (True, "x")], 2: {}})
    with pytest.raises(ValueError, match="Path"):
        check_plain([Path()])
    with pytest.raises(ValueError, match="key of the type tuple"):
        check_plain({(1, 2): 3})


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe, from which reading waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, pipe: Path) -> None:
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            read_text(path)
    link = tmp_path / "link.yaml"
    link.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no regular file"):
        read_yaml(link)
    file = tmp_path / "file"
    file.write_text("[1, 2]")
    assert read_json(file) == read_yaml(file) == [1, 2]
    with pytest.raises(TooMuch, match="larger than 0 MiB"):
        read_text(file, max_bytes=5)
    file.write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(file)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
