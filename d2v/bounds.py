"""Reading of foreign text, JSON and YAML within bounds of size, depth and number of values.

A small file can describe a structure that fills the memory (aliases in YAML, nested lists), crashes the interpreter
(nesting deeper than its stack) or never ends (backtracking patterns). Files of d2v and similar libraries stay far below
these bounds: the largest published tokenizers have 35 MB and two million values.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from d2v.lfs import IS_POINTER, is_lfs_pointer

MAX_BYTES = 128 << 20  # of a text file
MAX_VALUES = 8_000_000  # of a structure, containers included
MAX_NODES = 200_000  # of a structure in YAML: configurations
MAX_DEPTH = 64  # of nesting
MAX_DIGITS = 1_000  # of a number in YAML

_PLAIN = (type(None), bool, int, float, str)
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class TooMuch(ValueError):
    """The content of a file exceeds a bound."""


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """Return the UTF-8 text of a regular file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is a device or pipe, too large, a Git LFS pointer, or not UTF-8; the message does not name it.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooMuch(f"larger than {max_bytes >> 20} MiB")
    if is_lfs_pointer(content):
        raise ValueError(IS_POINTER)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has too many values.
    """
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:  # before memory is allocated
        raise TooMuch(f"more than {MAX_VALUES:,} values")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise TooMuch("nested too deep") from error
    check_plain(content)
    return content


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read and parse a JSON file; raises the errors of :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, max_bytes))


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain containers, numbers and strings.

    Raises:
        ValueError: the text is not YAML, has tags of other types, has aliases (with which a few lines can describe
            billions of values), is nested too deeply, or has too many values.
    """
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent):
                raise TooMuch(f"*{event.anchor} in line {line}: aliases are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise TooMuch(f"nested more than {MAX_DEPTH} deep in line {line}")
            if number > 2 * MAX_NODES:
                raise TooMuch(f"more than {MAX_NODES:,} values")
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _is_long_number(event.value):
                raise TooMuch(f"a number of {len(event.value):,} digits in line {line}")
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"not YAML ({error})") from error
    check_plain(content, max_values=MAX_NODES)
    return content


def read_yaml(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read and parse a YAML file; raises the errors of :func:`read_text` and :func:`parse_yaml`."""
    return parse_yaml(read_text(path, max_bytes))


def _is_long_number(text: str) -> bool:
    """Return whether YAML could read the text as a number so long that reading it takes quadratic time."""
    return len(text) > MAX_DIGITS and text[0] in "+-.0123456789"


def check_plain(content: Any, max_values: int = MAX_VALUES) -> None:
    """Raise ValueError unless a structure holds only plain values, not too many and not nested too deeply.

    Args:
        content: None, bool, int, float and str, in lists, tuples, sets and mappings.
        max_values: largest number of values, including containers.
    """
    for value in walk(content, max_values):
        if not isinstance(value, _PLAIN):
            raise ValueError(f"a value of the type {type(value).__name__}, which is no plain one")


def walk(
    content: Any, max_values: int, parts: Callable[[Any], Iterable[Any] | None] = lambda value: None
) -> Iterator[Any]:
    """Yield the values of a structure that are not containers.

    Shared parts count each time they occur, because any reader visits them that often.

    Args:
        content: lists, tuples, sets, and mappings with strings or integers as keys.
        max_values: largest number of values, including containers.
        parts: returns the elements of other containers, or None for values that are not containers.

    Raises:
        ValueError: too many values, nesting too deep, or a key of another type.
    """
    count, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if isinstance(value, Mapping):
            odd = next((key for key in value if not isinstance(key, str | int)), None)
            if odd is not None:
                raise ValueError(f"a key of the type {type(odd).__name__}: keys are texts or whole numbers")
            inner = list(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            inner = list(value)
        else:
            own = parts(value)
            if own is None:
                yield value
                continue
            inner = list(own)
        if depth >= MAX_DEPTH:
            raise TooMuch(f"nested more than {MAX_DEPTH} deep")
        if count + len(waiting) + len(inner) > max_values:
            raise TooMuch(f"more than {max_values:,} values")
        waiting.extend((element, depth + 1) for element in inner)
