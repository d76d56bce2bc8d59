"""Regular expressions that files bring: refused where matching could take for ever.

Time grows exponentially only where a text can be matched in exponentially many ways: a group is repeated that itself
varies, many parts in a row vary, or a part refers to an earlier group. This is told by the text of a pattern alone, in
what the syntaxes of Python and of Oniguruma (the library tokenizers) share; what they do not share is refused. The
patterns of published tokenizers pass.
"""

from __future__ import annotations

import re

MAX_LENGTH = 2_000  # characters
MAX_UNBOUNDED = 4  # unbounded repetitions one after another: time grows with that power of a text's length
MAX_WAYS = 100_000  # in which bounded repetitions and alternatives one after another can match

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
_FEW = 16  # a repetition that ends after so many adds ways, not a power


class Endless(ValueError):
    """A pattern could take for ever to match."""


class _Group:
    """Content of a group so far.

    Attributes:
        ways: in which it can match, unbounded repetitions aside.
        unbounded: repetitions in a row, of the alternative that has most.
    """

    def __init__(self) -> None:
        self.unbounded = 0
        self._others, self._ways, self._in_a_row = 0, 1, 0

    @property
    def ways(self) -> int:
        return self._others + self._ways

    def add(self, ways: int, unbounded: int) -> None:
        """Add a part to the alternative under way."""
        self._ways *= ways
        self._in_a_row += unbounded
        self.unbounded = max(self.unbounded, self._in_a_row)

    def alternative(self) -> None:
        """Begin another alternative."""
        self._others, self._ways, self._in_a_row = self.ways, 1, 0


def check_pattern(pattern: str) -> None:
    """Raise Endless if matching a pattern that a file brings could take for ever.

    Raises:
        Endless: saying why.
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
    """Return how often what ends at ``place`` is repeated, at least and at most, and where the repetition ends."""
    found = re.compile(rf"(?P<times>{_REPEAT})(?P<kind>\??|(?<=[*+?])\+)(?!{_REPEAT})").match(pattern, place)
    if found is None:
        return 1, 1, place
    times = found["times"]
    low, high = {"*": (0, _MANY), "+": (1, _MANY), "?": (0, 1)}.get(times, (0, 0))
    if times[0] == "{":
        least, comma, most = times[1:-1].partition(",")
        low = int(least or 0)
        high = int(most or _MANY) if comma else low
    return low, high, found.end()
