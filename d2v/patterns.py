"""Check of foreign regular expressions: those that could take exponential time to match are refused.

Time grows exponentially only if a text can match in exponentially many ways: a repeated group itself varies, many parts
in a row vary, or a part refers to an earlier group. The check reads only the text of a pattern, in the syntax shared by
Python and Oniguruma (the library of tokenizers); other syntax is refused. The patterns of published tokenizers pass.
"""

from __future__ import annotations

import re

MAX_LENGTH = 2_000  # characters
MAX_UNBOUNDED = 4  # unbounded repetitions in a row: time grows with that power of a text's length
MAX_WAYS = 100_000  # ways in which bounded repetitions and alternatives in a row can match

_REPEAT = r"[*+?]|\{\d+(?:,\d*)?\}|\{,\d+\}"
_OPENING = r"\((?:\?(?:[:=!>]|<[=!]|P?<\w+>|[imsua-]+:))?"
_TOKEN = re.compile(
    rf"(?P<repeat>{_REPEAT})"
    r"|(?P<flags>\(\?[imsua-]+\))"
    rf"|(?P<open>{_OPENING}(?!\?))|(?P<close>\))|(?P<or>\|)"
    r"|(?P<back>\\[1-9gkK]|\(\?P[=>])"
    r"|(?P<one>\[\^?\]?(?:[^\]\[\\]|\\.)*\]|\\[pPN]\{[^}]*\}|\\.|[^\\\[(])",
    re.DOTALL,
)
_MANY = 1 << 30
_FEW = 16  # a repetition of at most so many times multiplies ways instead of adding a power


class Endless(ValueError):
    """A pattern could take exponential time to match."""


class _Group:
    """State of a group while its pattern is read.

    Attributes:
        ways: number of ways in which the group can match, without unbounded repetitions.
        unbounded: largest number of unbounded repetitions in a row, over the alternatives.
    """

    def __init__(self) -> None:
        self.unbounded = 0
        self._others, self._ways, self._in_a_row = 0, 1, 0

    @property
    def ways(self) -> int:
        return self._others + self._ways

    def add(self, ways: int, unbounded: int) -> None:
        """Add a part to the current alternative."""
        self._ways *= ways
        self._in_a_row += unbounded
        self.unbounded = max(self.unbounded, self._in_a_row)

    def alternative(self) -> None:
        """Begin another alternative."""
        self._others, self._ways, self._in_a_row = self.ways, 1, 0


def check_pattern(pattern: str) -> None:
    """Check a pattern from a file.

    Raises:
        Endless: the pattern could take exponential time to match; the message says why.
    """
    if len(pattern) > MAX_LENGTH:
        raise Endless(f"a pattern of {len(pattern):,} characters; {MAX_LENGTH:,} are read")
    shown = repr(pattern if len(pattern) < 80 else f"{pattern[:77]}...")
    groups, place = [_Group()], 0
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        if token is None or token["back"]:
            raise Endless(
                f"the pattern {shown} has {pattern[place : place + 4]!r}, which no pattern of a file may have"
            )
        place = token.end()
        if token["repeat"]:
            raise Endless(f"the pattern {shown} repeats nothing, or a repetition")
        if token["open"]:
            groups.append(_Group())
        elif token["or"]:
            groups[-1].alternative()
        elif token["close"] or token["one"]:
            if token["close"] and len(groups) == 1:
                raise Endless(f"the pattern {shown} closes a group that it does not open")
            inner = groups.pop() if token["close"] else _Group()
            low, high, place = _repetition(pattern, place)
            if high > 1 and (inner.ways > 1 or inner.unbounded):
                raise Endless(f"the pattern {shown} repeats a group that itself can match in several ways")
            several = high - low + 1 if high <= _FEW else 1
            groups[-1].add(inner.ways * several, inner.unbounded + (high > _FEW and high != low))
        if max(group.unbounded for group in groups) > MAX_UNBOUNDED or max(group.ways for group in groups) > MAX_WAYS:
            raise Endless(f"the pattern {shown} has too many parts in a row that can match in several ways")


def _repetition(pattern: str, place: int) -> tuple[int, int, int]:
    """Return the smallest and largest number of repetitions of the part that ends at ``place``, and their end."""
    match = re.compile(rf"(?P<times>{_REPEAT})(?P<kind>\??|(?<=[*+?])\+)(?!{_REPEAT})").match(pattern, place)
    if match is None:
        return 1, 1, place
    times = match["times"]
    low, high = {"*": (0, _MANY), "+": (1, _MANY), "?": (0, 1)}.get(times, (0, 0))
    if times[0] == "{":
        least, comma, most = times[1:-1].partition(",")
        low = int(least or 0)
        high = int(most or _MANY) if comma else low
    return low, high, match.end()
