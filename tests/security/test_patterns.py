"""Patterns of published tokenizers and of configurations pass; those that backtrack for ever do not."""

from __future__ import annotations

import re

import pytest

from d2v.patterns import Endless, check_pattern

PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "GPT-4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
    "Llama 3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "GPT-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "DeepSeek": (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "spaces": r" {2,}",
    "labels": r"^([0-9])_",
    "groups": r"(?P<speaker>[a-z]+)-(\d+)[^/]*$",
    "lookbehind": r"(?<=/)\d{4}(?!\d)",
}
ENDLESS = {
    "nested": r"^(a+)+$",
    "nested, bounded": r"(a{0,8}){8}b",
    "nested, lazy": r"(?:a*?)*?b",
    "nested, large": r"^(?:.{1,100}){1,100}$",
    "optional inside": r"(a?){50}a{50}",
    "alternatives that overlap": r"^(?:a|a)*$",
    "alternatives deep inside": r"^(?:x(?:a|ab)y)+$",
    "optional in a row": "a?" * 30 + "a" * 30,
    "alternatives in a row": "(?:a|a)" * 30 + "b",
    "unbounded in a row": r"\s*" * 10 + "x",
    "a reference back": r"(a*)\1b",
    "a named reference back": r"(?P<x>a*)(?P=x)b",
    "recursion": r"(?<x>a|b\g<x>c)",
    "a repetition of a repetition": r"a{2,3}{2,30}b",
    "one hidden behind a set": r"[[](a+)+$",
    "one hidden by a comment": "(?x)#[\n(a+)+#]",
    "one hidden by another comment": r"(?#[)(a+)+(?#])",
    "a conditional": r"(a)?(?(1)b|c)",
    "one in a lookahead": r"(?=(a+)+b)a",
    "too long": "a" * 3000,
    "unbalanced": "a)(b+)+",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_pass(name: str) -> None:
    check_pattern(PUBLISHED[name])


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_patterns_are_refused(name: str) -> None:
    with pytest.raises(Endless):
        check_pattern(ENDLESS[name])


@pytest.mark.parametrize("pattern", [r"[]](a|b)", r"[^]a](b)", r"\[(a+)\]", r"[\]](a)", r"a\(b+\)+"])
def test_brackets_are_read_as_python_reads_them(pattern: str) -> None:
    check_pattern(pattern)
    re.compile(pattern)
