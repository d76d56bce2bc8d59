"""Words of a command line: values that Hydra's grammar would refuse or misread are quoted, or reported.

``data.root=2024_10`` names a folder, not the number 202410. Hydra parses a value without looking at its key, and has no
hook for this, so its parser is wrapped here for keys with string values.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

# Last parts of keys with string values, mostly paths.
TEXT_KEYS = {
    *("root", "val_root", "path", "manifest", "val_manifest", "transcripts", "val_transcripts", "files", "file"),
    *("checkpoint", "resume", "init_from", "output", "output_dir", "name", "tokenizer", "cache", "lm", "lexicon"),
    *("label_pattern", "group_pattern", "text_column", "label_column", "image_column", "audio_column", "column"),
}
_TEXT_KEYS_IN_FULL = {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "data.probe_train", "data.probe_val"}
_LIST_KEYS = {"checkpoint"}  # d2v evaluate checkpoint=[A,B]
_KEY = re.compile(r"(\+\+?)?([\w./@-]+)=(.*)", re.DOTALL)


_called_with: ContextVar[list[str] | None] = ContextVar("called_with", default=None)


def arguments() -> list[str]:
    """Return the words after the command: those of ``sys.argv``, or the equivalent of a call from Python."""
    words = _called_with.get()
    return sys.argv[1:] if words is None else words


@contextmanager
def called_with(words: list[str]) -> Iterator[None]:
    """Set the result of :func:`arguments` within the block."""
    token = _called_with.set(words)
    try:
        yield
    finally:
        _called_with.reset(token)


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, with any characters in it."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no reference
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def for_the_shell(word: str) -> str:
    """Return ``key=value`` as typed in a shell so that the value arrives as it is, whatever its characters."""
    key, _, value = word.partition("=")
    if re.search(r"""['"\\$`!]""", value):
        return shlex.quote(f"{key}={quoted(value)}")
    return f"'{key}=\"{value}\"'"


def is_text_key(key: str) -> bool:
    """Return whether the values of a key are strings, so that 2024, true or a,b are names there."""
    return key in _TEXT_KEYS_IN_FULL or key.rpartition(".")[2] in TEXT_KEYS


def as_typed(override: str, parse: Any, multirun: bool = False) -> str:
    """Return the override, with its value quoted if its key takes strings and the grammar would misread it.

    ``null`` stays null, ``${...}`` a reference, ``checkpoint=[a,b]`` a list and, in a multirun, ``a,b`` two values,
    unless a file has that name.

    Args:
        override: ``key=value``.
        parse: Hydra's parser of one override.
        multirun: whether values separated by commas are for several runs.
    """
    match = _KEY.fullmatch(override)
    if match is None or not is_text_key(match[2]):
        return override
    key, text = f"{match[1] or ''}{match[2]}", match[3]
    exists = bool(text) and os.path.lexists(text)
    try:
        parsed: Override = parse(override)
    except HydraException:
        return f"{key}={quoted(text)}"
    value = parsed._value
    if parsed.is_sweep_override():
        keep = multirun and not exists
    elif isinstance(value, str):
        keep = not exists or (value == text and "${" not in text)
    elif value is None or (isinstance(value, list) and match[2] in _LIST_KEYS):
        keep = not exists
    else:
        keep = isinstance(value, QuotedString) and not exists
    return override if keep else f"{key}={quoted(text)}"


def read_text_as_typed(multirun: bool = False) -> None:
    """Make Hydra's parser read the values of string keys as typed."""
    setattr(OverridesParser, "parse_rule", functools.partialmethod(_parse_rule, multirun=multirun))  # noqa: B010


_hydras_parse_rule = OverridesParser.parse_rule


def read_text_as_hydra_does() -> None:
    """Undo :func:`read_text_as_typed`."""
    setattr(OverridesParser, "parse_rule", _hydras_parse_rule)  # noqa: B010


def _parse_rule(parser: OverridesParser, s: str, rule_name: str, multirun: bool = False) -> Any:
    if rule_name == "override":
        s = as_typed(s, lambda word: _hydras_parse_rule(parser, word, rule_name), multirun)
    return _hydras_parse_rule(parser, s, rule_name)


def is_multirun(arguments: list[str]) -> bool:
    """Return whether the command line asks for several runs."""
    return any(a in ("-m", "--multirun", "hydra.mode=MULTIRUN", "launcher=slurm") for a in arguments)


def check_words(arguments: list[str]) -> None:
    """Raise ValueError, with a correction, for words that are neither ``key=value`` nor options of Hydra."""
    takes_value = False
    flags = get_args_parser()._option_string_actions
    for i, word in enumerate(arguments):
        if takes_value:
            takes_value = False
        elif word.startswith("-") and word.partition("=")[0] not in flags:
            _refuse_dashes(word, arguments[i + 1 : i + 2])
        elif word.startswith("-"):
            action = flags[word.partition("=")[0]]
            optional = action.nargs == "?" and arguments[i + 1 : i + 2] and arguments[i + 1] in (action.choices or ())
            takes_value = "=" not in word and bool(action.nargs is None or optional)
        elif "=" not in word and not word.startswith("~"):
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            if following.startswith("="):
                raise ValueError(f"{word} {following}: write {word}={following.lstrip('=') or 'VALUE'}, without blanks")
            if i and arguments[i - 1].endswith("="):
                raise ValueError(f"{arguments[i - 1]} {word}: write {arguments[i - 1]}{word}, without blanks")
            if i and _KEY.fullmatch(arguments[i - 1]):
                before = f"{arguments[i - 1]} {word}"
                raise ValueError(f"{word}: give key=value; if it belongs to the value before, {for_the_shell(before)}")
            raise ValueError(f"{word}: give key=value, such as seed=1")
        elif word.startswith("="):
            raise ValueError(f"{word}: give key=value, such as seed=1, without blanks around the =")


def _refuse_dashes(word: str, following: list[str]) -> None:
    bare = word.lstrip("-").replace("-", "_") if "=" not in word else word.lstrip("-")
    if "=" not in bare and following and "=" not in following[0] and not following[0].startswith("-"):
        bare = f"{bare}={following[0]}"
    elif "=" not in bare:
        bare = f"{bare}=VALUE"
    raise ValueError(f"{word}: keys have no dashes before them: write {bare}")
